//! Forks a VM and its children.

use std::collections::BTreeSet;

use super::killer::Blow;
use super::{Failures, Vm, id_of, make, remove};
use crate::support::dice::Dice;
use crate::support::{Home, guest_word};

/// Most children of one fork.
const MOST: u64 = 3;
/// Children that are kept from round to round.
const KEPT: usize = 2;

pub(crate) struct Forker {
    dice: Dice,
    made: u64,
    asked: u64,
    source: Option<Vm>,
    children: Vec<Vm>,
    /// Names of children of forks that did not answer.
    uncertain: Vec<String>,
    failures: Failures,
}

impl Forker {
    pub(crate) fn new(dice: Dice) -> Self {
        Self {
            dice,
            made: 0,
            asked: 0,
            source: None,
            children: Vec::new(),
            uncertain: Vec::new(),
            failures: Failures::default(),
        }
    }

    pub(crate) fn prepare(&mut self, home: &Home) {
        if self.source.is_none() {
            self.made += 1;
            let name = format!("dev-{}", self.made);
            self.source = Some(make(home, &name, &format!("of-{name}")));
        }
    }

    pub(crate) fn source(&self) -> String {
        self.source.as_ref().unwrap().id.clone()
    }

    fn question(&mut self) -> String {
        self.asked += 1;
        format!("f{}", self.asked)
    }

    pub(crate) fn live(&mut self, home: &Home) {
        let all: Vec<Vm> = self.source.iter().chain(&self.children).cloned().collect();
        let from = match self.dice.roll(3) {
            0 => self.dice.pick(&all).unwrap(),
            _ => all[0].clone(),
        };
        self.fork(home, &from);
        while self.children.len() > KEPT {
            let child = self.children.remove(0);
            let output = home.run(&["rm", &child.name]);
            if !output.status.success() {
                self.failures.note("rm of a child", &[&child.id], &output);
                self.uncertain.push(child.name);
            }
        }
    }

    fn fork(&mut self, home: &Home, from: &Vm) {
        self.made += 1;
        let count = self.dice.roll(MOST) + 1;
        let pattern = format!("child-{}-{{n}}", self.made);
        let names: Vec<String> = (1..=count).map(|n| format!("child-{}-{n}", self.made)).collect();
        let arguments =
            ["--output", "json", "fork", &from.name, "--count", &count.to_string(), "--name", &pattern];
        let output = home.run(&arguments);
        if !output.status.success() {
            // Struck may be the source or any of the children, whose ids nobody was told.
            self.failures.note("fork", &[&from.id], &output);
            self.uncertain.extend(names);
            return;
        }
        let forked: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut children = Vec::new();
        for (vm, name) in forked["vms"].as_array().unwrap().iter().zip(names) {
            assert_eq!(vm["name"], *name);
            children.push((Vm { name, id: id_of(vm), words: from.words.clone() }, self.question()));
        }
        let looks: Vec<_> = std::thread::scope(|scope| {
            let look = |(child, question): &(Vm, String)| guest_word::look(home, &child.name, question);
            let looks: Vec<_> = children.iter().map(|one| scope.spawn(move || look(one))).collect();
            looks.into_iter().map(|look| look.join().unwrap()).collect()
        });
        for ((child, _), output) in children.into_iter().zip(looks) {
            if output.status.success() {
                assert_eq!(guest_word::wrong(&output, &child.name, &child.words[0]), None, "{child:?}");
            } else {
                self.failures.note("a look into a child", &[&child.id], &output);
            }
            self.children.push(child);
        }
    }

    /// Gives the names of what is left.
    pub(crate) fn check(&mut self, home: &Home, blow: &Blow, known: &BTreeSet<String>) -> BTreeSet<String> {
        self.failures.check(blow, known);
        for name in std::mem::take(&mut self.uncertain) {
            remove(home, &name);
        }
        let mut whole = Vec::new();
        for vm in self.source.take().into_iter().chain(std::mem::take(&mut self.children)) {
            if blow.struck.contains(&vm.id) {
                remove(home, &vm.name);
            } else {
                whole.push((vm, self.question()));
            }
        }
        std::thread::scope(|scope| {
            for (vm, question) in &mut whole {
                scope.spawn(|| vm.expect_whole(home, question));
            }
        });
        for (vm, _) in whole {
            if vm.name.starts_with("dev-") {
                self.source = Some(vm);
            } else {
                self.children.push(vm);
            }
        }
        self.source.iter().chain(&self.children).map(|vm| vm.name.clone()).collect()
    }
}
