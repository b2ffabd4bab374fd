//! A manager's life: it opens its store, runs Raft, answers other managers and nodes, and does what its callers ask.
//!
//! Invariant: it begins with what its disk holds, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyhole_manager::raft::{Peers, RaftHandle, StartOptions, keep_membership};
use keyhole_manager::store::{Load, OnFatal, Store, WriterTurns};
use keyhole_state::{Command, State};
use tokio::time::sleep;

use crate::cast;
use crate::clients;
use crate::dice::Dice;
use crate::network::{self, SimDial, SimNetwork};
use crate::nodes;
use crate::world::{Order, Running, World};

/// Small enough that snapshots are made and installed all the time.
const OPTIONS: StartOptions = StartOptions { snapshot_at_bytes: 12_000, keep_log_bytes: 4_000 };
const STORE: &str = "/data/store.redb";
const CLIENTS: u64 = 2;

/// Makes the store of a manager that has not begun yet.
pub(crate) fn create_store(world: &World, member: u64) {
    let mut world = world.lock();
    let disk = world.disks.entry(member).or_default().clone();
    let created = Store::create_on(
        disk.clone(),
        disk.mark(),
        STORE,
        &cast::identity(member),
        &cast::kek(member),
    );
    created.expect("a store can be made");
    world.slow.insert(member, false);
}

/// Runs until the host ends.
pub(crate) async fn live(world: World, member: u64) -> turmoil::Result {
    let mut dice = world.begin_life(member);
    let disk = world.lock().disks[&member].clone();
    let (writing, failed) = (Dice::new(dice.next()), world.clone());
    let mut opened = None;
    let open = |on_fatal: OnFatal, load: Load<'_>| {
        let kek = cast::kek(member);
        let (store, turns) =
            Store::open_by_turns(disk.clone(), disk.mark(), STORE, &kek, on_fatal, load)?;
        let store = Arc::new(store);
        opened = Some(store.clone());
        tokio::spawn(write(world.clone(), member, turns, writing));
        Ok(store)
    };
    let on_stop = Arc::new(move |why: String| failed.broken(format!("m{member} stopped: {why}")));
    let peers = Peers::default();
    let network = SimNetwork(peers.clone());
    let replica = RaftHandle::start_on(open, network, OPTIONS, Arc::new(|_| ()), on_stop).await;
    let replica = match replica {
        Ok(replica) => replica.with_peers(peers, cast::cluster(), SimDial),
        Err(error) => {
            world.broken(format!("m{member} does not start: {error}"));
            return Ok(());
        }
    };
    let store = opened.expect("it was opened");
    world.lock().running.insert(member, Running { replica: replica.clone(), store });
    tokio::spawn(keep_membership(replica.clone()));
    tokio::spawn(nodes::dispatch(world.clone(), replica.clone()));
    tokio::spawn(follow_orders(world.clone(), member, replica.clone()));
    for _ in 0..CLIENTS {
        tokio::spawn(clients::ask(world.clone(), member, replica.clone(), Dice::new(dice.next())));
    }
    if member == 1 {
        tokio::spawn(found(replica.clone()));
    }
    network::serve(replica).await;
    Ok(())
}

/// The store's writer: it takes its turns as long as a disk takes.
async fn write(world: World, member: u64, mut turns: WriterTurns, mut dice: Dice) {
    loop {
        let slow = world.lock().slow[&member];
        let millis = if slow { dice.between(50, 400) } else { dice.between(1, 9) };
        sleep(Duration::from_millis(millis)).await;
        if !turns.turn() {
            return;
        }
    }
}

/// Makes the cluster, if it is not there yet, with its first members, nodes and a service.
async fn found(replica: RaftHandle) {
    replica.found(cast::peer(1)).await.expect("a cluster of one can be made");
    if replica.read(|state| state.cluster().is_some()) {
        return;
    }
    let mut commands = vec![cast::init()];
    for member in 2..=cast::FOUNDERS {
        commands.push(Command::AddMember { member: cast::member(member), keys: cast::keys() });
    }
    commands.extend(nodes::beginning());
    for command in commands {
        // Faults begin later; what fails is seen by those who wait for the beginning.
        let _ = replica.propose(cast::envelope(1, command)).await;
    }
}

async fn follow_orders(world: World, member: u64, replica: RaftHandle) {
    loop {
        sleep(Duration::from_millis(20)).await;
        let order = world.lock().orders.entry(member).or_default().pop_front();
        if let Some(order) = order {
            follow(&world, member, &replica, order).await;
        }
    }
}

async fn follow(world: &World, member: u64, replica: &RaftHandle, order: Order) {
    let propose = async |command| {
        // Whether it was done, the members say.
        let _ = replica.propose(cast::envelope(member, command)).await;
    };
    match order {
        Order::Join(id) => {
            propose(Command::AddMember { member: cast::member(id), keys: cast::keys() }).await;
        }
        Order::Promote(id) => propose(Command::PromoteMember { id, keys: cast::keys() }).await,
        Order::Demote(id) => {
            if let Some(voters) = can_spare(replica, id) {
                propose(Command::DemoteMember { id, voters }).await;
            }
        }
        Order::Remove(id) => {
            if let Some(voters) = can_spare(replica, id) {
                propose(Command::RemoveMember { id, voters }).await;
            }
        }
        Order::HandOver => drop(replica.hand_over(None).await),
        Order::Prove => clients::prove(world, member, replica).await,
    }
}

/// As the leader is asked before a manager loses its vote: who votes, if they can do without it.
fn can_spare(replica: &RaftHandle, id: u64) -> Option<BTreeSet<u64>> {
    let status = replica.status();
    let voting = status.members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id);
    let voting: BTreeSet<u64> = voting.collect();
    let reached = |id: &u64| {
        *id == status.member
            || status
                .others
                .get(id)
                .and_then(|other| other.silent)
                .is_some_and(|silent| silent < keyhole_manager::raft::OUT_OF_REACH)
    };
    let reached = voting.iter().copied().filter(|id| reached(id)).collect();
    let spare =
        |state: &State| state.quorum_without(id, &voting, &reached).is_ok().then(|| state.voters());
    replica.read(spare).filter(|_| status.is_leader)
}
