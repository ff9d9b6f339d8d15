//! Ends processes at random moments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::support::dice::Dice;
use crate::support::{Home, signal, wait_for_end};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Server,
    SourceVmm,
    OtherVmm,
    Supervisor,
}

/// What the killer did in a round.
#[derive(Debug, Default)]
pub(crate) struct Blow {
    pub(crate) server: bool,
    /// Ids of VMs it struck.
    pub(crate) struck: BTreeSet<String>,
}

pub(crate) struct Killer {
    dice: Dice,
    done: BTreeMap<Victim, u32>,
    seen: BTreeSet<String>,
}

impl Killer {
    pub(crate) fn new(dice: Dice) -> Self {
        Self { dice, done: BTreeMap::new(), seen: BTreeSet::new() }
    }

    pub(crate) fn done(&self) -> &BTreeMap<Victim, u32> {
        &self.done
    }

    /// Every id that was ever seen.
    pub(crate) fn seen(self) -> BTreeSet<String> {
        self.seen
    }

    pub(crate) fn look(&mut self, home: &Home) {
        self.seen.extend(home.ids());
    }

    fn wait(&mut self, home: &Home, most_ms: u64) {
        // Not for an event: a random moment is what is wanted.
        let end = Instant::now() + Duration::from_millis(self.dice.roll(most_ms));
        while Instant::now() < end {
            self.look(home);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn strike(&mut self, home: &Home, sources: &[String], round: u64) -> Blow {
        let mut blow = Blow::default();
        self.wait(home, 2_000);
        let choice = self.dice.roll(10);
        let target = match choice {
            0..=1 => self.dice.pick(sources),
            _ => {
                let ids: Vec<String> = home.ids().into_iter().filter(|id| !sources.contains(id)).collect();
                // Young ones are more interesting: something is under way with them.
                let young = ids[ids.len() - ids.len().min(4)..].to_vec();
                self.dice.pick(&young)
            }
        };
        let processes = target.as_ref().and_then(|id| home.processes_of(id));
        let victim = match (choice, target, processes) {
            (0..=1, Some(id), Some((vmm, _))) => {
                blow.struck.insert(id);
                signal("KILL", vmm);
                Victim::SourceVmm
            }
            (2..=3, Some(id), Some((vmm, _))) => {
                blow.struck.insert(id);
                signal("KILL", vmm);
                Victim::OtherVmm
            }
            (4, Some(id), Some((_, supervisor))) => {
                blow.struck.insert(id);
                signal("KILL", supervisor);
                Victim::Supervisor
            }
            _ => {
                blow.server = true;
                for _ in 0..=round % 2 {
                    if let Some(pid) = home.server() {
                        signal("KILL", pid);
                        wait_for_end(pid);
                    }
                    // The second time it dies while it takes up what there is.
                    self.wait(home, 600);
                }
                Victim::Server
            }
        };
        *self.done.entry(victim).or_default() += 1;
        self.look(home);
        blow
    }
}
