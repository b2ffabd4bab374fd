//! `keyhole dev`: a manager and a node of one's own for as long as one command, a shell, or this process runs.
//!
//! Parts: `place` (what it has on this machine), `parts` (its processes), `terminal` (signals, and what to type). This
//! process holds no value and serves nothing: it runs the very commands that an operator would type. Invariant: whatever
//! ends it, nothing stays; what a kill -9 leaves, the next dev removes.

mod parts;
mod place;
mod terminal;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Args;
use keyhole_node_fs::{mountinfo, requirements};
use keyhole_proto::v1;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::host::Host;
use crate::operator::Manager;
pub(crate) use parts::DevPart;
use parts::{Parts, exit_code, keyhole};
use place::Place;
use terminal::{Asked, Signals};

/// The service of the shell or the command.
const SERVICE: &str = "dev";
/// The one node.
const HOSTNAME: &str = "dev";

/// After the options of `keyhole dev --help`.
pub(crate) const EXAMPLES: &str = "Examples:\n  \
    keyhole dev                                                (a shell that is a task, and what to type in it)\n  \
    keyhole dev --secret db_password=./pw -- ./app --port 80   (one command, which finds ./pw as its secret)\n  \
    keyhole dev --mount /run/secrets < /dev/null               (until Ctrl-C, for other terminals)\n\n\
    The shell and the command are a task of the service 'dev' and have KEYHOLE_HOST, KEYHOLE_NODE_SOCKET and\n\
    KEYHOLE_SECRETS (where the files are) in their environment. All is kept in memory, and gone at the end.\n\
    The exit code is the command's; 125 if keyhole failed or was refused, 126 if the command cannot be executed,\n\
    127 if it is not found.";

/// `dev`
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Where tasks find their secrets [default: a folder of its own]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// A secret for the shell or the command, with its value's file
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    secret: Vec<(String, PathBuf)>,
    /// The command and its arguments; without one a shell, or nothing if standard input is no terminal
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(file)))
        }
        _ => Err("write NAME=FILE, or NAME=- for standard input".to_owned()),
    }
}

impl Dev {
    /// Runs until the command, the shell or a signal ends it.
    pub(crate) fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        requirements::check().map_err(Failure::new)?;
        // One thread: its end is what the parts die by.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
        runtime.block_on(self.live(global, console))
    }

    async fn live(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        // First of all, so that no signal can leave anything behind.
        let mut signals = Signals::take()?;
        let (place, left) = Place::make(self.mount.as_deref())?;
        for failure in left {
            console.warn(&failure.to_string());
        }
        let global = Global { host: Some(Host::Unix(place.manager_socket())), ..global.clone() };
        let mut parts = Parts::default();
        let outcome = self.work(&global, &place, &mut parts, &mut signals, console).await;
        place.end_tasks();
        parts.end().await;
        match (outcome, place.remove()) {
            (Ok(()), removed) => removed,
            (Err(failure), Ok(())) => Err(failure),
            (Err(failure), Err(left)) => {
                console.warn(&left.to_string());
                Err(failure)
            }
        }
    }

    async fn work(
        &self,
        global: &Global,
        place: &Place,
        parts: &mut Parts,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<(), Failure> {
        tokio::select! {
            started = self.start(global, place, parts) => started?,
            asked = signals.next() => return Err(Failure::ended(asked.exit_code())),
        }
        if !self.command.is_empty() {
            return command(&self.command, place, parts, signals).await;
        }
        if io::stdin().is_terminal() {
            console.print(&format!(
                "{}{}",
                terminal::SHELL,
                terminal::hint(place, terminal::OWN)
            ))?;
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
            return command(&[shell.unwrap_or_else(|| "/bin/sh".into())], place, parts, signals)
                .await;
        }
        console.print(&format!("{}{}", terminal::SERVING, terminal::hint(place, "")))?;
        tokio::select! {
            failure = parts.failed() => Err(failure),
            _ = signals.next() => Ok(()),
        }
    }

    async fn start(
        &self,
        global: &Global,
        place: &Place,
        parts: &mut Parts,
    ) -> Result<(), Failure> {
        let kek = place.private("kek");
        let mut manager = start_manager(global, place, &kek, parts).await?;
        // From here on the key is in that process alone.
        std::fs::remove_file(&kek).map_err(|error| {
            Failure::new(format!("cannot remove the key file {}: {error}", kek.display()))
        })?;
        let request = v1::JoinTokenRequest { role: v1::TokenRole::Worker.into(), rotate: false };
        let join = manager.api.join_token(request).await?.into_inner();
        start_node(place, parts, &join).await?;
        let here = format!("node.hostname=={HOSTNAME}");
        let create = ["service", "create", SERVICE, "--constraint", &here];
        let mut create = create.map(str::to_owned).to_vec();
        for (name, file) in &self.secret {
            let words = ["secret", "create", name].map(OsString::from);
            let words = words.into_iter().chain([file.into()]);
            operate(place, words, Stdio::inherit()).await?;
            create.extend(["--secret".to_owned(), name.clone()]);
        }
        operate(place, create.into_iter().map(Into::into), Stdio::null()).await
    }
}

async fn start_manager(
    global: &Global,
    place: &Place,
    kek: &Path,
    parts: &mut Parts,
) -> Result<Manager, Failure> {
    let mut words: Vec<OsString> =
        ["manager", "run", "--init", "--listen", "127.0.0.1:0"].map(Into::into).to_vec();
    for (option, path) in [
        ("--data-dir", place.private("manager")),
        ("--socket", place.manager_socket()),
        ("--kek-file", kek.to_owned()),
    ] {
        words.extend([option.into(), path.into()]);
    }
    parts.start_manager(place, words)?;
    parts.until(async || Manager::connect(global).await.ok()).await
}

/// Starts the node and waits until its mount is there.
async fn start_node(
    place: &Place,
    parts: &mut Parts,
    join: &v1::JoinTokenReply,
) -> Result<(), Failure> {
    let token = place.private("token");
    let written = File::options().write(true).create_new(true).mode(0o600).open(&token);
    let written = written.and_then(|mut file| file.write_all(join.token.as_bytes()));
    written.map_err(|error| Failure::new(format!("cannot write {}: {error}", token.display())))?;
    let mut words: Vec<OsString> =
        ["node", "run", "--hostname", HOSTNAME, "--join", &join.address].map(Into::into).to_vec();
    for (option, path) in [
        ("--data-dir", place.private("node")),
        ("--control-socket", place.node_socket()),
        ("--mount", place.mount().to_owned()),
        ("--cgroup-parent", place.tasks_cgroup()),
        ("--token-file", token.clone()),
    ] {
        words.extend([option.into(), path.into()]);
    }
    let pid = parts.start_node(place, words)?;
    // The source of a mount begins so; another node's may be at the same place.
    let source = format!("keyhole-{pid}-");
    let is_ours = |entry: &mountinfo::MountEntry| {
        entry.mount_point == place.mount()
            && entry.source.as_encoded_bytes().starts_with(source.as_bytes())
    };
    let mounted = async || mountinfo::read().is_ok_and(|all| all.iter().any(is_ours)).then_some(());
    parts.until(mounted).await?;
    std::fs::remove_file(&token)
        .map_err(|error| Failure::new(format!("cannot remove {}: {error}", token.display())))
}

/// Runs a command of an operator; it reports its own failure.
async fn operate(
    place: &Place,
    words: impl Iterator<Item = OsString>,
    warnings: Stdio,
) -> Result<(), Failure> {
    let mut command = keyhole(place, words);
    command.stdout(Stdio::null()).stderr(warnings);
    let status = command.status().await;
    match status.map_err(|error| Failure::new(format!("cannot start keyhole: {error}")))? {
        status if status.success() => Ok(()),
        _ => Err(Failure::reported()),
    }
}

/// Runs the command as a task, to its end; its exit code is this process's.
async fn command(
    words: &[OsString],
    place: &Place,
    parts: &mut Parts,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut task = parts::task(place, SERVICE, words)?;
    let mut patience = None;
    loop {
        let asked = tokio::select! {
            status = task.wait() => return match status.map(exit_code) {
                Ok(0) => Ok(()),
                Ok(code) => Err(Failure::ended(code)),
                Err(error) => Err(Failure::new(format!("cannot wait for the command: {error}"))),
            },
            failure = parts.failed() => return Err(failure),
            asked = signals.next() => asked,
            () = terminal::expired(patience) => Asked::Now,
        };
        match asked {
            // The terminal has told the command too, and it decides.
            Asked::Interrupt(_) if io::stdin().is_terminal() => {}
            Asked::Interrupt(signal) => parts::signal(&task, signal),
            Asked::End(signal) if patience.is_none() => {
                parts::signal(&task, signal);
                patience = Some(terminal::patience());
            }
            Asked::End(_) | Asked::Now => return Err(Failure::ended(asked.exit_code())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_a_name_and_a_file() {
        assert_eq!(named_file("a=b=c").unwrap(), ("a".to_owned(), PathBuf::from("b=c")));
        assert_eq!(named_file("a=-").unwrap(), ("a".to_owned(), PathBuf::from("-")));
        for text in ["", "a", "=b", "a="] {
            assert!(named_file(text).is_err(), "{text:?}");
        }
    }
}
