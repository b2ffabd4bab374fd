//! What goes wrong, and what operators do meanwhile: chosen by the seed, one thing after the other.
//!
//! Invariant: everything here ends with [`Faults::heal`]; after it the network and all disks are well again, and whoever
//! is a member runs.

use std::collections::BTreeMap;
use std::time::Duration;

use turmoil::Sim;

use crate::cast::{self, MANAGERS, manager_host};
use crate::dice::Dice;
use crate::world::{Order, World};

/// The faults of one simulation.
pub(crate) struct Faults {
    world: World,
    dice: Dice,
    /// When the next thing happens, in simulated milliseconds.
    next: u64,
    /// Who is down, and until when.
    down: BTreeMap<u64, u64>,
    /// Who was told to join.
    joining: u64,
    /// Who was told to leave for good.
    leaving: u64,
}

impl Faults {
    pub(crate) fn new(world: World, begin: u64) -> Self {
        let dice = Dice::for_number(world.seed, 7);
        Self {
            world,
            dice,
            next: begin,
            down: BTreeMap::new(),
            joining: cast::FOUNDERS,
            leaving: 0,
        }
    }

    /// Does what is due at `now`, in simulated milliseconds.
    pub(crate) fn tick(&mut self, sim: &mut Sim<'_>, now: u64) {
        let back: Vec<u64> =
            self.down.iter().filter(|(_, until)| **until <= now).map(|(id, _)| *id).collect();
        back.into_iter().for_each(|member| self.start(sim, member));
        if now >= self.next {
            self.next = now + self.dice.between(50, 900);
            self.happen(sim, now);
        }
    }

    fn happen(&mut self, sim: &mut Sim<'_>, now: u64) {
        match self.dice.below(20) {
            0..4 => self.crash(sim, now),
            4..9 => self.cut(sim),
            9..11 => self.repair(sim),
            11 => {
                let slowest = self.dice.between(4, 150);
                sim.set_max_message_latency(Duration::from_millis(slowest));
            }
            12 => {
                let percent = self.dice.below(3) as f64 / 100.0;
                sim.set_fail_rate(percent);
            }
            13 => self.slow_down(),
            14..16 => self.order(Order::HandOver),
            _ => self.change_members(),
        }
    }

    /// Some disks take long from now on, and the others do not.
    fn slow_down(&mut self) {
        for member in 1..=MANAGERS {
            let slow = self.dice.once_in(2);
            self.world.lock().slow.insert(member, slow);
        }
    }

    fn any(&mut self) -> u64 {
        self.dice.between(1, MANAGERS + 1)
    }

    /// Two different managers.
    fn two(&mut self) -> (String, String) {
        let one = self.any();
        let other = (one + self.dice.between(0, MANAGERS - 1)) % MANAGERS + 1;
        (manager_host(one), manager_host(other))
    }

    /// A manager is killed, or its machine loses power, or all machines lose it at once: what was not synced is gone then.
    fn crash(&mut self, sim: &mut Sim<'_>, now: u64) {
        let running: Vec<u64> = self.world.lock().running.keys().copied().collect();
        if self.dice.once_in(3) {
            return running.into_iter().for_each(|member| self.end(sim, member, true, now));
        }
        if let Some(member) = self.dice.pick(&running) {
            let power_lost = self.dice.once_in(2);
            self.end(sim, member, power_lost, now);
        }
    }

    fn end(&mut self, sim: &mut Sim<'_>, member: u64, power_lost: bool, now: u64) {
        let until = now + self.dice.between(10, 3000);
        self.down.insert(member, until);
        {
            let world = &mut *self.world.lock();
            let disk = &world.disks[&member];
            let left = match power_lost {
                true => disk.after_power_loss(&mut self.dice),
                false => disk.after_kill(),
            };
            world.disks.insert(member, left);
            world.watch.ended(member);
            world.orders.remove(&member);
            world.trace.note(("ended", member, power_lost));
            world.counts.power_losses += u64::from(power_lost);
            world.counts.kills += u64::from(!power_lost);
        }
        // Its store is closed when the last who knows it is gone; what that writes is not on the disk any more.
        let ended = self.world.lock().running.remove(&member);
        sim.crash(manager_host(member));
        drop(ended);
    }

    fn start(&mut self, sim: &mut Sim<'_>, member: u64) {
        self.down.remove(&member);
        sim.bounce(manager_host(member));
    }

    /// Something does not get through.
    fn cut(&mut self, sim: &mut Sim<'_>) {
        self.world.lock().counts.cuts += 1;
        match self.dice.below(4) {
            0 => {
                let (one, other) = self.two();
                sim.partition(one, other);
            }
            1 => {
                let (from, to) = self.two();
                sim.partition_oneway(from, to);
            }
            2 => {
                let (one, other) = self.two();
                sim.hold(one, other);
            }
            _ => {
                // One alone, in one direction or in both; often it is the leader.
                let leader = self.leader().filter(|_| self.dice.once_in(2));
                let alone = leader.unwrap_or_else(|| self.any());
                let way = self.dice.below(3);
                for other in (1..=MANAGERS).filter(|other| *other != alone) {
                    let (alone, other) = (manager_host(alone), manager_host(other));
                    match way {
                        0 => sim.partition(alone, other),
                        1 => sim.partition_oneway(alone, other),
                        _ => sim.partition_oneway(other, alone),
                    }
                }
            }
        }
    }

    fn repair(&mut self, sim: &mut Sim<'_>) {
        for one in 1..=MANAGERS {
            for other in one + 1..=MANAGERS {
                if self.dice.once_in(2) {
                    sim.release(manager_host(one), manager_host(other));
                    sim.repair(manager_host(one), manager_host(other));
                }
            }
        }
    }

    fn leader(&self) -> Option<u64> {
        let world = self.world.lock();
        let leads = |(id, running): (&u64, &crate::world::Running)| {
            running.replica.status().is_leader.then_some(*id)
        };
        world.running.iter().find_map(leads)
    }

    /// Tells the leader, or whoever there is.
    fn order(&mut self, order: Order) {
        let running: Vec<u64> = self.world.lock().running.keys().copied().collect();
        let somebody = self.leader().or_else(|| self.dice.pick(&running));
        if let Some(member) = somebody {
            self.world.lock().orders.entry(member).or_default().push_back(order);
        }
    }

    /// Managers join one after the other, lose and get their votes, and one may leave for good.
    fn change_members(&mut self) {
        let id = self.any();
        let order = match self.dice.below(8) {
            0..4 if self.joining < MANAGERS => {
                let joined = |id: u64| {
                    let world = self.world.lock();
                    world.running.values().any(|running| {
                        running.replica.read(|state| state.members().contains_key(&id))
                    })
                };
                if self.joining == cast::FOUNDERS || joined(self.joining) {
                    self.joining += 1;
                }
                Order::Join(self.joining)
            }
            4 => Order::Promote(id),
            5 | 6 => Order::Demote(id),
            7 if self.leaving == 0 && self.dice.once_in(3) => {
                self.leaving = id;
                Order::Remove(id)
            }
            _ => Order::Promote(id),
        };
        self.order(order);
    }

    /// Everything is well again.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>) {
        for one in 1..=MANAGERS {
            for other in one + 1..=MANAGERS {
                sim.release(manager_host(one), manager_host(other));
                sim.repair(manager_host(one), manager_host(other));
            }
        }
        sim.set_fail_rate(0.0);
        sim.set_max_message_latency(Duration::from_millis(4));
        self.world.lock().slow.values_mut().for_each(|slow| *slow = false);
        let down: Vec<u64> = self.down.keys().copied().collect();
        down.into_iter().for_each(|member| self.start(sim, member));
    }
}
