//! One simulation, from its seed to its end: a beginning without faults, faults, and a time in which all is well again.
//!
//! Invariant: after each step of the simulated network everything that must hold is looked at; the first breach ends it.
mod scene;

pub(crate) use scene::Scene;

use std::collections::BTreeSet;
use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::cast::{self, FOUNDERS, MANAGERS, NODES, manager_host, node_host};
use crate::faults::Faults;
use crate::machine;
use crate::world::{Counts, Order, World};
use crate::{manager, nodes};

/// One step of the network, in simulated milliseconds.
const TICK: u64 = 2;
/// A cluster of three is there within this time.
const BEGINNING: u64 = 20_000;
/// So long things go wrong.
const FAULTS: u64 = 12_000;
/// Afterwards every manager that votes takes a write within this time. An election takes two seconds at most, a call that
/// waits for somebody who is gone as long, and a call with a deadline of ten may be on its way when all is well again.
const RECOVERY: u64 = 25_000;

/// How a simulation ended.
pub(crate) struct Ended {
    /// A hash of all that happened.
    pub(crate) trace: u64,
    pub(crate) counts: Counts,
    /// Simulated time.
    pub(crate) after: Duration,
    /// What must not be.
    pub(crate) broken: Option<String>,
}

/// Runs the simulation of a seed.
pub(crate) fn run(seed: u64, scene: Scene) -> Ended {
    let world = World::new(seed);
    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(TICK))
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(4))
        .tcp_capacity(1 << 16)
        .enable_random_order()
        .build();
    for member in 1..=MANAGERS {
        manager::create_store(&world, member);
        let world = world.clone();
        sim.host(manager_host(member), move || manager::live(world.clone(), member));
    }
    for number in 1..=NODES {
        let world = world.clone();
        sim.host(node_host(number), move || nodes::live(world.clone(), number));
    }
    let mut watched = Watched { world, sim, now: 0 };
    let ended = watched.phases(scene);
    let inner = watched.world.lock();
    let mut counts = inner.counts.clone();
    counts.leaders = inner.watch.led_terms();
    Ended { trace: inner.trace.hash(), counts, after: watched.sim.elapsed(), broken: ended.err() }
}

/// A simulation, and who looks at it after each step.
struct Watched<'a> {
    world: World,
    sim: Sim<'a>,
    now: u64,
}

impl Watched<'_> {
    fn phases(&mut self, scene: Scene) -> Result<(), String> {
        self.until(BEGINNING, "no cluster of three with its nodes", Self::begun)?;
        match scene {
            Scene::Faults => self.faults(),
            Scene::OneInReach => self.one_in_reach(),
            Scene::Back => self.back(),
        }
    }

    /// What the seed chooses goes wrong; then all is well again.
    fn faults(&mut self) -> Result<(), String> {
        let mut faults = Faults::new(self.world.clone(), self.now + TICK);
        let end = self.now + FAULTS;
        while self.now < end {
            faults.tick(&mut self.sim, self.now);
            self.step()?;
        }
        faults.heal(&mut self.sim);
        self.until(RECOVERY, "not every member runs again", Self::all_run)?;
        self.world.lock().quiet = true;
        self.until(RECOVERY, "not every manager that votes takes a write", Self::all_proven)?;
        self.until(RECOVERY, "the managers do not come to the same state", Self::settled)?;
        let members = self.members();
        let world = &mut *self.world.lock();
        for (member, running) in &world.running {
            if members.contains(member) {
                running.replica.read(|state| world.watch.settled(*member, state))?;
            }
        }
        Ok(())
    }

    /// Goes on until `is` holds.
    fn until(
        &mut self,
        within: u64,
        otherwise: &str,
        is: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let end = self.now + within;
        while !is(self) {
            if self.now >= end {
                return Err(format!("liveness: {otherwise} after {within} ms\n{}", self.picture()));
            }
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("a host ended: {error}"))?;
        self.now += TICK;
        machine::set_elapsed(self.sim.elapsed());
        let world = &mut *self.world.lock();
        for (member, running) in &world.running {
            let purged = world.watch.purged(*member);
            if let Some(look) = world.watch.look(*member, running)? {
                world.trace.note((self.now, member, look));
                world.counts.snapshots += u64::from(world.watch.purged(*member) > purged);
            }
        }
        world.broken.take().map_or(Ok(()), Err)
    }

    fn read<R>(&self, member: u64, look: impl FnOnce(&keyhole_state::State) -> R) -> Option<R> {
        let running = self.world.lock().running.get(&member).cloned()?;
        Some(running.replica.read(look))
    }

    /// The state of whoever has applied most.
    fn latest<R>(&self, look: impl Fn(&keyhole_state::State) -> R) -> Option<R> {
        let all =
            (1..=MANAGERS).filter_map(|member| Some((self.read(member, |s| s.index())?, member)));
        let (_, member) = all.max()?;
        self.read(member, look)
    }

    fn begun(&self) -> bool {
        let founders = (1..=FOUNDERS).collect::<BTreeSet<_>>();
        let voting = |member: u64| {
            let running = self.world.lock().running.get(&member).cloned();
            running.is_some_and(|running| {
                let status = running.replica.status();
                let votes = status.members.iter().filter(|(_, (_, votes))| *votes);
                votes.map(|(id, _)| *id).eq(founders.iter().copied())
            })
        };
        let tasks = |state: &keyhole_state::State| {
            (1..=NODES).all(|n| !state.assignment(cast::node(n)).tasks.is_empty())
        };
        (1..=FOUNDERS).all(|member| voting(member) && self.read(member, tasks) == Some(true))
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.latest(|state| state.voters()).unwrap_or_default()
    }

    fn members(&self) -> BTreeSet<u64> {
        self.latest(|state| state.members().keys().copied().collect()).unwrap_or_default()
    }

    fn all_run(&self) -> bool {
        let members = self.members();
        let world = self.world.lock();
        members.iter().all(|member| world.running.contains_key(member))
    }

    fn all_proven(&self) -> bool {
        let voters = self.voters();
        let world = &mut *self.world.lock();
        // Who gets its vote only now is told now.
        for member in voters.iter().filter(|member| !world.proven.contains_key(member)) {
            let orders = world.orders.entry(*member).or_default();
            if !orders.contains(&Order::Prove) {
                orders.push_back(Order::Prove);
            }
        }
        voters.iter().all(|member| world.proven.contains_key(member))
    }

    /// All members have applied the same, and Raft's membership is what was wanted.
    fn settled(&self) -> bool {
        let members = self.members();
        let voters = self.voters();
        let world = self.world.lock();
        let of = |member: &u64| {
            let replica = &world.running.get(member)?.replica;
            let status = replica.status();
            let votes: BTreeSet<u64> =
                status.members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id).collect();
            (votes == voters).then(|| replica.read(|state| state.index()))
        };
        let indexes: Option<BTreeSet<u64>> = members.iter().map(of).collect();
        indexes.is_some_and(|indexes| indexes.len() == 1)
    }

    /// Who is where, for whoever has to find out why.
    fn picture(&self) -> String {
        let world = self.world.lock();
        let line = |(member, running): (&u64, &crate::world::Running)| {
            let status = running.replica.status();
            let state = running.replica.read(|s| (s.index(), s.voters()));
            format!("  m{member}: {status:?}, state {state:?}\n")
        };
        world.running.iter().map(line).collect()
    }
}
