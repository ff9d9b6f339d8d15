//! Ends processes at random moments.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::dice::Dice;
use crate::support::{Home, signal};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Server,
    SourceVmm,
    OtherVmm,
    Supervisor,
}

/// Kills of one round.
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

    /// Lets some time pass, but no longer than `goes_on`, looking which VMs there are.
    fn wait(&mut self, home: &Home, most_ms: u64, mut goes_on: impl FnMut() -> bool) {
        // Not for an event: a random moment is what is wanted.
        let end = Instant::now() + Duration::from_millis(self.dice.roll(most_ms));
        while Instant::now() < end && goes_on() {
            self.look(home);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `busy`: how many still do something that can be disturbed.
    pub(crate) fn strike(&mut self, home: &Home, sources: &[String], busy: &AtomicUsize, round: u64) -> Blow {
        let mut blow = Blow::default();
        self.wait(home, 1_000, || busy.load(Ordering::Acquire) > 0);
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
                home.kill_server();
                if round % 2 == 1 {
                    // The second time it dies while it takes up what there is.
                    let mut wakes =
                        home.command(&["ls"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                    self.wait(home, 400, || true);
                    home.kill_server();
                    wakes.wait().unwrap();
                }
                Victim::Server
            }
        };
        *self.done.entry(victim).or_default() += 1;
        self.look(home);
        blow
    }
}
