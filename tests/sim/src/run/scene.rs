//! Scenes: faults of which it is known what must come of them. The seed gives delays and the order of things, not the fault.
//!
//! Invariant: as in every other run, all that must hold is looked at after each step.
use std::str::FromStr;

use super::Watched;
use crate::cast::{FOUNDERS, MANAGERS, manager_host};
use crate::world::Order;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scene {
    /// Whatever the seed chooses.
    Faults,
    /// Of five managers one is away, and the leader reaches only one of the others, which all reach each other.
    OneInReach,
    /// A manager that reached nobody for a while does so again.
    Back,
}

impl FromStr for Scene {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "faults" => Ok(Self::Faults),
            "one-in-reach" => Ok(Self::OneInReach),
            "back" => Ok(Self::Back),
            _ => Err(()),
        }
    }
}

/// Those that are told to join do so within this time.
const JOINING: u64 = 20_000;
/// A majority that is connected takes a write within this time: a leader that has lost it is silent for 2.4 seconds at
/// first, and again after as many.
const ELECTED: u64 = 12_000;
/// So long somebody reaches nobody: he would stand for election several times.
const AWAY: u64 = 6_000;
/// And has what the others have so soon.
const BACK: u64 = 5_000;

impl Watched<'_> {
    /// A leader that has lost the majority must not keep it from one that leads it.
    pub(super) fn one_in_reach(&mut self) -> Result<(), String> {
        for id in FOUNDERS + 1..=MANAGERS {
            let (leader, _) = self.leads()?;
            self.world.lock().orders.entry(leader).or_default().push_back(Order::Join(id));
            self.until(JOINING, "no one more that votes", |sim| sim.all_vote(id))?;
        }
        let (leader, _) = self.leads()?;
        let others: Vec<u64> = (1..=MANAGERS).filter(|id| *id != leader).collect();
        let [away, far, other, _near] = others[..] else { return Err("five managers".to_owned()) };
        self.cut(away, (1..=MANAGERS).filter(|id| *id != away));
        self.cut(leader, [far, other]);
        self.world.lock().orders.entry(far).or_default().push_back(Order::Prove);
        self.until(ELECTED, "a majority that is connected takes no write", |sim| {
            sim.world.lock().proven.contains_key(&far)
        })
    }

    /// Who comes back must not have another one lead.
    pub(super) fn back(&mut self) -> Result<(), String> {
        let (leader, term) = self.leads()?;
        let away = leader % FOUNDERS + 1;
        self.cut(away, (1..=MANAGERS).filter(|id| *id != away));
        let end = self.now + AWAY;
        while self.now < end {
            self.step()?;
        }
        self.repair();
        let there = self.read(leader, |state| state.index());
        self.until(BACK, "who was away does not catch up", |sim| {
            sim.read(away, |state| state.index()) >= there
        })?;
        match self.leads()? == (leader, term) {
            true => Ok(()),
            false => Err(format!("m{away} came back, and the lead went\n{}", self.picture())),
        }
    }

    /// Who leads, and in which term.
    fn leads(&self) -> Result<(u64, u64), String> {
        let leads = self.world.lock().running.values().find_map(|running| {
            let status = running.replica.status();
            status.is_leader.then_some((status.member, status.term))
        });
        leads.ok_or_else(|| format!("nobody leads\n{}", self.picture()))
    }

    /// Whether the first of the managers vote, up to this one.
    fn all_vote(&self, last: u64) -> bool {
        let world = self.world.lock();
        world.running.iter().filter(|(id, _)| **id <= last).all(|(_, running)| {
            let status = running.replica.status();
            let votes = status.members.iter().filter(|(_, (_, votes))| *votes);
            votes.map(|(id, _)| *id).eq(1..=last)
        })
    }

    fn cut(&self, one: u64, others: impl IntoIterator<Item = u64>) {
        for other in others {
            self.sim.partition(manager_host(one), manager_host(other));
        }
    }

    fn repair(&self) {
        for one in 1..=MANAGERS {
            for other in one + 1..=MANAGERS {
                self.sim.repair(manager_host(one), manager_host(other));
            }
        }
    }
}
