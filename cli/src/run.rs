//! `keyhole run`: registers a fresh cgroup, enters it and becomes the command.
//!
//! Invariant: the command is this very process, so signals, job control and the exit code are its own; nothing of
//! Keyhole's (descriptors, limits, signal dispositions) is left in it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use keyhole_proto::v1;
use keyhole_proto::v1::control_client::ControlClient;
use rustix::fs::{Access, access};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::host;
use crate::task::{DEFAULT_WAIT, millis};

/// After the options of `keyhole run --help`.
pub(crate) const EXAMPLES: &str = "Examples:\n  \
    keyhole run --service web -- ./app --port 80\n  \
    keyhole run --service web --uid 33 --gid 33 -- cat /run/secrets/db_password\n\n\
    The exit code is the command's; 125 if keyhole failed or was refused, 126 if the command cannot be executed,\n\
    127 if it is not found.";

/// `run`
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The service, by name or id
    #[arg(long, value_name = "SERVICE")]
    service: String,
    /// The user to run as, a number; without supplementary groups
    #[arg(long, value_parser = clap::value_parser!(u32).range(..i64::from(u32::MAX)))]
    uid: Option<u32>,
    /// The group to run as, a number; the same as --uid if only that is given
    #[arg(long, value_parser = clap::value_parser!(u32).range(..i64::from(u32::MAX)))]
    gid: Option<u32>,
    /// How long to wait for the task's files
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = DEFAULT_WAIT)]
    wait: Duration,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

impl Run {
    /// Becomes the command; returns only if that does not work.
    pub(crate) fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(Failure::usage("no command is given"));
        };
        // Found out before a task is made of nothing.
        let file = find(Path::new(program))?;
        // One thread: the credentials and the cgroup below are this thread's.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
        let (mut node, task) = runtime.block_on(self.register(global, console))?;
        let failure = match self.enter(&task) {
            Ok(()) => {
                let error = Command::new(&file).arg0(program).args(arguments).exec();
                cannot_start(&file, &error)
            }
            Err(failure) => failure,
        };
        // The socket was opened with the rights of then; should this fail, the task ends with this process.
        forget(&runtime, &mut node, &task);
        Err(failure)
    }

    async fn register(
        &self,
        global: &Global,
        console: &mut Console,
    ) -> Result<(ControlClient<Channel>, v1::NodeTask), Failure> {
        let mut node = host::node_for(&global.node_socket, self.wait).await?;
        let request =
            v1::RunTaskRequest { service: self.service.clone(), wait_millis: millis(self.wait) };
        let work = node.run_task(request);
        let task = console.while_waiting("the task's files", work).await;
        let task = task.map_err(|status| Failure::from(status).about(&self.service))?.into_inner();
        Ok((node, task))
    }

    /// Into the cgroup first, while this is still root.
    fn enter(&self, task: &v1::NodeTask) -> Result<(), Failure> {
        let procs = Path::new(&task.cgroup).join("cgroup.procs");
        let join =
            OpenOptions::new().write(true).open(&procs).and_then(|mut file| file.write_all(b"0"));
        join.map_err(|error| {
            Failure::new(format!(
                "cannot enter the task's cgroup {}: {error}; run this as root",
                task.cgroup
            ))
        })?;
        let ids = self.become_user();
        ids.map_err(|error| {
            Failure::new(format!("cannot take --uid and --gid: {error}; run this as root"))
        })
    }

    /// The given ids and no others; all three kinds, so that there is no way back.
    fn become_user(&self) -> io::Result<()> {
        let Some(gid) = self.gid.or(self.uid) else {
            return Ok(());
        };
        let group = rustix::fs::Gid::from_raw(gid);
        set_thread_groups(&[group])?;
        set_thread_res_gid(group, group, group)?;
        if let Some(uid) = self.uid {
            let user = rustix::fs::Uid::from_raw(uid);
            set_thread_res_uid(user, user, user)?;
        }
        Ok(())
    }
}

fn forget(runtime: &Runtime, node: &mut ControlClient<Channel>, task: &v1::NodeTask) {
    let request = v1::RemoveTaskRequest { id: task.id.clone() };
    let removal = async {
        let _ = tokio::time::timeout(Duration::from_secs(5), node.remove_task(request)).await;
    };
    runtime.block_on(removal);
}

/// The file that execvp would take, or why there is none.
fn find(program: &Path) -> Result<PathBuf, Failure> {
    if program.as_os_str().is_empty() {
        return Err(Failure::command_not_found("the command is empty"));
    }
    if program.components().count() > 1 || program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return match check(program) {
            Ok(()) => Ok(program.to_owned()),
            Err(error) => Err(cannot_start(program, &error)),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let mut refused = None;
    for folder in std::env::split_paths(&path) {
        let file = folder.join(program);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => refused = refused.or(Some((file, error))),
        }
    }
    match refused {
        Some((file, error)) => Err(cannot_start(&file, &error)),
        None => Err(Failure::command_not_found(format!(
            "{}: command not found in PATH",
            program.display()
        ))),
    }
}

/// Whether it is a file with an executable bit; the kernel has the last word.
fn check(file: &Path) -> io::Result<()> {
    let kind = std::fs::metadata(file)?;
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(access(file, Access::EXEC_OK)?)
}

/// 127 for what is not there, 126 for what cannot be executed.
fn cannot_start(file: &Path, error: &io::Error) -> Failure {
    let file = file.display();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::command_not_found(format!(
            "{file}: not found (or, if it is a script, its interpreter is not)"
        )),
        _ => Failure::cannot_execute(format!("{file}: cannot be executed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        assert!(find(Path::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(find(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn what_is_not_there_is_127_and_what_cannot_run_126() {
        for (program, code) in [
            ("keyhole-no-such-command", 127),
            ("/nonexistent/x", 127),
            ("", 127),
            ("/", 126),
            ("/etc/passwd", 126),
        ] {
            let failure = find(Path::new(program)).unwrap_err();
            assert_eq!(failure.exit_code_of_run(), code, "{program}: {failure}");
        }
    }
}
