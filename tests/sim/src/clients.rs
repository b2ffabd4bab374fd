//! Callers of a manager: they create, rotate, roll back and read, and remember what they were told.
//!
//! Invariant: only what was acknowledged, or said not to be done, is held against the cluster; what ended otherwise may have
//! been done or not.

use std::time::Duration;

use keyhole_domain::{Labels, SecretId, Version};
use keyhole_manager::raft::{ProposeError, RaftHandle};
use keyhole_state::{Command, RotateItem, State};
use tokio::time::sleep;

use crate::cast;
use crate::dice::Dice;
use crate::invariants::acknowledged::Kept;
use crate::world::World;

/// So many secrets are made; then they are rotated.
const SECRETS: u64 = 12;

/// Asks this manager until it ends.
pub(crate) async fn ask(world: World, member: u64, replica: RaftHandle, mut dice: Dice) {
    loop {
        sleep(Duration::from_millis(dice.between(5, 120))).await;
        let (quiet, made) = {
            let world = world.lock();
            (world.quiet, world.next_secret)
        };
        if quiet || replica.read(|state| !state.voters().contains(&member)) {
            continue;
        }
        match dice.below(10) {
            0..4 => read(&world, &replica).await,
            4 if made <= SECRETS => {
                create(&world, member, &replica, &mut dice).await;
            }
            5 => roll_back(&world, member, &replica, &mut dice).await,
            _ => rotate(&world, member, &replica, &mut dice).await,
        }
    }
}

/// Writes until it is done: this manager works.
pub(crate) async fn prove(world: &World, member: u64, replica: &RaftHandle) {
    let mut dice = Dice::new(member);
    while !world.lock().proven.contains_key(&member) {
        if create(world, member, replica, &mut dice).await {
            let applied = replica.read(State::index);
            world.lock().proven.insert(member, applied);
        } else {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn any_secret(replica: &RaftHandle, dice: &mut Dice) -> Option<SecretId> {
    let ids: Vec<SecretId> = replica.read(|state| state.secrets().keys().copied().collect());
    dice.pick(&ids)
}

/// A mark for another value.
fn next_mark(world: &World) -> u64 {
    let mut world = world.lock();
    world.next_mark += 1;
    world.next_mark
}

async fn create(world: &World, member: u64, replica: &RaftHandle, dice: &mut Dice) -> bool {
    let number = {
        let mut world = world.lock();
        world.next_secret += 1;
        world.next_secret
    };
    let (id, mark) = (cast::secret(number), next_mark(world));
    let command = Command::CreateSecret {
        id,
        name: format!("secret-{number}").parse().expect("it is a name"),
        labels: Labels::default(),
        value: cast::value(mark, dice.below(400) as usize),
    };
    write(world, member, replica, command, Some(Kept { id, version: Version::FIRST, mark })).await
}

async fn rotate(world: &World, member: u64, replica: &RaftHandle, dice: &mut Dice) {
    let Some(id) = any_secret(replica, dice) else { return };
    let Some(last) = replica.read(|state| Some(state.secrets().get(&id)?.last)) else { return };
    let (version, mark) = (last.next(), next_mark(world));
    let value = cast::value(mark, dice.below(400) as usize);
    let command = Command::RotateSecrets { items: vec![RotateItem { id, version, value }] };
    write(world, member, replica, command, Some(Kept { id, version, mark })).await;
}

async fn roll_back(world: &World, member: u64, replica: &RaftHandle, dice: &mut Dice) {
    let Some(id) = any_secret(replica, dice) else { return };
    write(world, member, replica, Command::RollbackSecret { id, to: None }, None).await;
}

/// Proposes a command; notes what it left if it was acknowledged. Whether it was done.
async fn write(
    world: &World,
    member: u64,
    replica: &RaftHandle,
    command: Command,
    kept: Option<Kept>,
) -> bool {
    let done = replica.propose(cast::envelope(member, command)).await;
    let mut world = world.lock();
    match done {
        Ok(committed) if committed.result.is_ok() => {
            world.counts.written += 1;
            world.trace.note(("written", member, committed.index));
            world.watch.acknowledged.written(committed.index, kept);
            true
        }
        Ok(committed) => {
            world.counts.rejected += 1;
            world.trace.note(("rejected", member, committed.index));
            // That it was refused is an answer as well: it was decided by what was there then.
            world.watch.acknowledged.written(committed.index, None);
            kept.into_iter().for_each(|kept| world.watch.undone.told(kept.mark));
            false
        }
        Err(ProposeError::NotLeader { .. } | ProposeError::Refused { .. }) => {
            world.counts.undone += 1;
            world.trace.note(("undone", member));
            kept.into_iter().for_each(|kept| world.watch.undone.told(kept.mark));
            false
        }
        Err(error) => {
            world.counts.unknown += 1;
            world.trace.note(("unknown", member, error.to_string()));
            false
        }
    }
}

async fn read(world: &World, replica: &RaftHandle) {
    let floor = world.lock().watch.acknowledged.floor();
    let member = replica.identity().member;
    if replica.catch_up().await.is_err() {
        world.lock().counts.unread += 1;
        return;
    }
    let mut world = world.lock();
    let checked = replica.read(|state| {
        world.counts.read += 1;
        world.trace.note(("read", member, state.index()));
        world.watch.acknowledged.read(member, state, floor)
    });
    world.check(checked);
}
