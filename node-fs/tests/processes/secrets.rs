//! A worker that serves secrets, told over the control socket what to show.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use keyhole_domain::{
    AssignedGrant, AssignedTask, Assignment, GrantId, Revision, SecretId, TaskId, Timestamp,
    ValueKey, Version,
};
use keyhole_node_fs::caller::{Callers, IdentitySource};
use keyhole_node_fs::cgroups::CgroupRoot;
use keyhole_node_fs::fuse::Secrets;
use keyhole_node_fs::handover;
use keyhole_node_fs::inheritance::Inheritance;
use keyhole_node_fs::meter::Meter;
use keyhole_node_fs::stage::Stage;
use keyhole_node_fs::values::Values;
use keyhole_secmem::{SecretBytes, harden};
use keyhole_view::cgroup::CgroupId;
use keyhole_view::{MountFacts, ShownValue, View};
use serde::{Deserialize, Serialize};

/// What the worker is to show: for each task (by its cgroup's id) the version of its secret.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Show {
    pub(crate) tasks: BTreeMap<u64, u64>,
    pub(crate) identity: IdentitySource,
}

/// The value of a task's secret: recognisable in each of its lines.
pub(crate) fn value(cgroup: u64, version: u64) -> Vec<u8> {
    format!("task {cgroup} version {version}\n").repeat(500).into_bytes()
}

/// The role of worker, for the application settings of a [`Show`].
pub(crate) fn serve(inheritance: Inheritance) -> ExitCode {
    harden::install_panic_hook();
    harden::forbid_dumps().unwrap();
    let show: Show = serde_json::from_value(inheritance.app["show"].clone()).unwrap();
    let callers = Callers::new(Arc::new(CgroupRoot::find().unwrap()), show.identity);
    assert_eq!(callers.source(), show.identity);
    let callers = Arc::new(callers);
    let values = Values::open_in(&inheritance.key, inheritance.values, []).unwrap();
    let view = View::empty(MountFacts { mounted: Timestamp(1) });
    let stage = Stage::new(view, inheritance.handles, values);
    let meter = Arc::new(Meter::default());
    let secrets = Secrets::new(
        stage.clone(),
        callers.clone(),
        meter.clone(),
        inheritance.attempts,
        Box::new(|opened| assert!(opened.tid != 0 && opened.file.size > 0)),
    );
    let adopted = handover::adopt(secrets, inheritance.device, &inheritance.init, 2).unwrap();
    stage.connect(adopted.notifier()).unwrap();
    // What the last worker was told, or else the settings.
    let mut text = String::new();
    let mut state = &inheritance.state;
    std::io::Seek::rewind(&mut state).unwrap();
    std::io::Read::read_to_string(&mut state, &mut text).unwrap();
    let show = serde_json::from_str(&text).unwrap_or(show);
    publish(&stage, &callers, &show);
    let reporter = Arc::new(inheritance.reporter);
    let listener = inheritance.listener;
    let state = inheritance.state;
    std::thread::spawn(move || {
        obey(&listener, |show| {
            let text = serde_json::to_string(show).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&state, text.as_bytes(), 0).unwrap();
            state.set_len(text.len() as u64).unwrap();
            publish(&stage, &callers, show);
        })
    });
    reporter.ready().unwrap();
    reporter.start_heartbeat(meter).unwrap();
    adopted.run().unwrap();
    ExitCode::FAILURE
}

/// Each line on the socket is a [`Show`]; it is answered when it is published.
fn obey(listener: &UnixListener, publish: impl Fn(&Show)) {
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        let mut line = String::new();
        BufReader::new(connection.try_clone().unwrap()).read_line(&mut line).unwrap();
        publish(&serde_json::from_str(&line).unwrap());
        connection.write_all(b"published\n").unwrap();
    }
}

fn publish(stage: &Stage, callers: &Callers, show: &Show) {
    let tasks: Vec<AssignedTask> =
        show.tasks.iter().map(|(cgroup, version)| assigned(*cgroup, *version)).collect();
    for (cgroup, version) in &show.tasks {
        for grant in assigned(*cgroup, *version).grants.iter() {
            let bytes = SecretBytes::copy_from(&mut value(*cgroup, *version)).unwrap();
            let shown = ShownValue { incarnation: 1, key: grant.value };
            stage.values().insert(shown, bytes).unwrap();
        }
    }
    callers.register(show.tasks.keys().map(|cgroup| (CgroupId(*cgroup), task(*cgroup))).collect());
    let live: BTreeSet<TaskId> = tasks.iter().map(|task| task.id).collect();
    let assignment = Assignment { revision: Revision { incarnation: 1, index: 1 }, tasks };
    stage.publish(&assignment, &live, Timestamp(2_000_000_000));
    assert!(stage.view().refusals().is_empty());
}

fn task(cgroup: u64) -> TaskId {
    TaskId::from_entropy(u128::from(cgroup).to_be_bytes())
}

fn assigned(cgroup: u64, version: u64) -> AssignedTask {
    let grant = |id: u64, target: &str, uid, mode: &str| AssignedGrant {
        id: GrantId(cgroup * 10 + id),
        value: ValueKey {
            secret: SecretId::from_entropy(u128::from(cgroup).to_be_bytes()),
            version: Version::new(version).unwrap(),
        },
        size: u32::try_from(value(cgroup, version).len()).unwrap(),
        name: format!("secret-{cgroup}").parse().unwrap(),
        target: target.parse().unwrap(),
        uid,
        gid: 0,
        mode: mode.parse().unwrap(),
    };
    AssignedTask {
        id: task(cgroup),
        service: "web".parse().unwrap(),
        grants: [grant(1, "password", 0, "0444"), grant(2, "tls/key", 1000, "0400")].into(),
        rejected: None,
    }
}
