//! Takes VMs out of the pool.

use std::collections::BTreeSet;

use super::killer::Blow;
use super::{Failures, remove};
use crate::support::dice::Dice;
use crate::support::{Home, text};

/// Sizes of the pool's VMs.
const TEMPLATE: &str = "linux-default";

pub(crate) struct Acquirer {
    dice: Dice,
    number: u64,
    made: u64,
    kept: Option<String>,
    uncertain: Vec<String>,
    failures: Failures,
}

impl Acquirer {
    pub(crate) fn new(number: u64, dice: Dice) -> Self {
        Self { dice, number, made: 0, kept: None, uncertain: Vec::new(), failures: Failures::default() }
    }

    pub(crate) fn live(&mut self, home: &Home) {
        // Two at once in a quarter of the rounds, none in another.
        if self.dice.roll(2) == 0 {
            self.acquire(home);
        }
        // What a template boots to is made anew now and then, while others are forked from it.
        if self.dice.roll(24) == 0 {
            let output = home.run(&["golden", "update", TEMPLATE]);
            if !output.status.success() {
                self.failures.note("golden update", &[], &output);
            }
        }
    }

    fn acquire(&mut self, home: &Home) {
        self.made += 1;
        let name = format!("taken-{}-{}", self.number, self.made);
        // A VM that somebody had before would show their mark.
        let script = "cat /root/mark 2>/dev/null; hostname; hostname > /root/mark";
        let output =
            home.run(&["run", "--keep", "--pool", "pool", "--name", &name, "--", "sh", "-c", script]);
        if output.status.success() {
            assert_eq!(text(&output.stdout), format!("{name}\n"), "it was somebody else's, or is");
            self.uncertain.extend(self.kept.replace(name));
        } else {
            self.failures.note("run from the pool", &[], &output);
            self.uncertain.push(name);
        }
    }

    pub(crate) fn check(&mut self, home: &Home, blow: &Blow, known: &BTreeSet<String>) -> BTreeSet<String> {
        self.failures.check(blow, known);
        for name in std::mem::take(&mut self.uncertain) {
            remove(home, &name);
        }
        if let Some(name) = self.kept.take() {
            let shown = home.json(&["inspect", &name]);
            if blow.struck.contains(shown["id"].as_str().unwrap()) {
                remove(home, &name);
            } else {
                assert_eq!(home.must(&["exec", &name, "--", "cat", "/root/mark"]), format!("{name}\n"));
                self.kept = Some(name);
            }
        }
        self.kept.iter().cloned().collect()
    }
}
