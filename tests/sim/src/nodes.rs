//! Nodes that follow the managers, one after the other, and the managers' side of it.
//!
//! The rules are those of a manager and of a node: the assignment and the delta to it are the state's and the domain's,
//! and [`Revision::may_follow`](keyhole_domain::Revision::may_follow) is what a node asks. Values do not travel, and a
//! delta travels by its number. Invariant: a node takes over a delta only if that rule lets it.

use std::time::Duration;

use keyhole_domain::{Assignment, AssignmentDelta, FileMode, Labels, NodeId, Revision};
use keyhole_manager::raft::RaftHandle;
use keyhole_state::{Command, GrantRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};
use turmoil::net::{TcpListener, TcpStream};

use crate::cast;
use crate::world::World;

const PORT: u16 = 7001;
/// As a manager has it: what follows a change within this time travels with it.
const COALESCE: Duration = Duration::from_millis(5);
/// A node that hears nothing for so long goes to another manager.
const SILENCE: Duration = Duration::from_secs(2);

/// A secret, a service that is granted it, and a task of it on each node.
pub(crate) fn beginning() -> Vec<Command> {
    let grant = GrantRequest {
        secret: cast::secret(0),
        target: "db/password".parse().expect("it is a target"),
        uid: 0,
        gid: 0,
        mode: FileMode::DEFAULT,
        pinned: None,
    };
    let mut commands = vec![
        Command::CreateSecret {
            id: cast::secret(0),
            name: "secret-0".parse().expect("it is a name"),
            labels: Labels::default(),
            value: cast::value(0, 10),
        },
        Command::CreateService {
            id: cast::service(),
            name: "web".parse().expect("it is a name"),
            labels: Labels::default(),
            grants: vec![grant],
            constraints: Vec::new(),
        },
    ];
    for number in 1..=cast::NODES {
        let node = cast::node(number);
        commands.push(Command::JoinNode { id: node, hostname: cast::node_host(number) });
        commands.push(Command::ClaimTask {
            id: cast::task(number),
            service: cast::service(),
            node,
            cgroup: "/task".to_owned(),
        });
    }
    commands
}

/// Tells nodes what they are assigned, until the manager ends.
pub(crate) async fn dispatch(world: World, replica: RaftHandle) {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await.expect("the port is free");
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(tell(world.clone(), replica.clone(), stream));
    }
}

/// One node's stream: a complete assignment first, then what changed.
async fn tell(world: World, replica: RaftHandle, mut stream: TcpStream) -> Option<()> {
    let node = cast::node(stream.read_u64().await.ok()?);
    let mut changes = replica.subscribe();
    let mut sent: Option<Assignment> = None;
    loop {
        let assignment = replica.read(|state| state.assignment(node));
        let delta = AssignmentDelta::between(sent.as_ref(), &assignment);
        if !delta.is_empty() {
            sent = Some(assignment);
            let letter = post(&world, delta);
            stream.write_u64(letter).await.ok()?;
        }
        next_change(&mut changes, node).await?;
        sleep(COALESCE).await;
    }
}

async fn next_change(
    changes: &mut tokio::sync::broadcast::Receiver<keyhole_manager::raft::Change>,
    node: NodeId,
) -> Option<()> {
    loop {
        match changes.recv().await {
            Ok(change) if change.nodes.contains(&node) => return Some(()),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return Some(()),
            Err(RecvError::Closed) => return None,
        }
    }
}

fn post(world: &World, delta: AssignmentDelta) -> u64 {
    let mut world = world.lock();
    let letter = world.next_letter;
    world.next_letter += 1;
    world.letters.insert(letter, delta);
    letter
}

/// A node's life: it follows one manager until the stream ends, then another one.
pub(crate) async fn live(world: World, number: u64) -> turmoil::Result {
    let mut dice = world.begin_life(100 + number);
    let mut seen = Revision::default();
    loop {
        let manager = dice.between(1, cast::MANAGERS + 1);
        let _ = timeout(Duration::from_secs(20), follow(&world, number, manager, &mut seen)).await;
        sleep(Duration::from_millis(dice.between(10, 200))).await;
    }
}

async fn follow(world: &World, number: u64, manager: u64, seen: &mut Revision) -> Option<()> {
    let connect = TcpStream::connect((cast::manager_host(manager), PORT));
    let mut stream = timeout(SILENCE, connect).await.ok()?.ok()?;
    stream.write_u64(number).await.ok()?;
    let mut shown: Option<Assignment> = None;
    loop {
        let letter = timeout(SILENCE, stream.read_u64()).await.ok()?.ok()?;
        let mut world = world.lock();
        let delta = world.letters.get(&letter).cloned()?;
        if !delta.results_in.may_follow(*seen) {
            world.counts.refused += 1;
            return None;
        }
        match delta.apply(shown.as_ref()) {
            Ok(assignment) => {
                *seen = assignment.revision;
                world.counts.shown += 1;
                world.trace.note(("shown", number, seen.index));
                let checked = world.watch.revisions.shown(number, manager, &assignment);
                world.check(checked);
                shown = Some(assignment);
            }
            Err(error) => {
                world.check(Err(format!("n{number} cannot follow m{manager}: {error}")));
                return None;
            }
        }
    }
}
