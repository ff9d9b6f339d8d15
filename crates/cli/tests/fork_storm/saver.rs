//! Takes snapshots of a VM, restores them, goes back to them, and removes them.

use std::collections::{BTreeMap, BTreeSet};

use super::killer::Blow;
use super::{Failures, Vm, id_of, make, remove};
use crate::support::dice::Dice;
use crate::support::{Home, guest_word, text};

/// One round.
const STEPS: u64 = 2;
/// Snapshots from which on old ones are removed.
const MOST: usize = 6;

/// A snapshot that was reported as written.
#[derive(Debug, Clone)]
struct Saved {
    vm: String,
    word: String,
    /// Somebody began to remove it.
    uncertain: bool,
}

pub(crate) struct Saver {
    dice: Dice,
    made: u64,
    vm: Option<Vm>,
    saved: BTreeMap<String, Saved>,
    /// VMs of restores that did not answer.
    uncertain: Vec<String>,
    failures: Failures,
}

impl Saver {
    pub(crate) fn new(dice: Dice) -> Self {
        let failures = Failures::default();
        Self { dice, made: 0, vm: None, saved: BTreeMap::new(), uncertain: Vec::new(), failures }
    }

    pub(crate) fn prepare(&mut self, home: &Home) {
        if self.vm.is_none() {
            let name = self.next("back");
            self.vm = Some(make(home, &name, &format!("of-{name}")));
        }
    }

    pub(crate) fn source(&self) -> String {
        self.vm.as_ref().unwrap().id.clone()
    }

    fn next(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{}", self.made)
    }

    pub(crate) fn live(&mut self, home: &Home) {
        for _ in 0..STEPS {
            let mut vm = self.vm.take().unwrap();
            // Whatever was cut off is told apart in the check.
            let steady = vm.words.len() == 1;
            // Before there are so many of one VM that the server drops the oldest by itself.
            match self.dice.roll(10) {
                _ if self.saved.len() > MOST => self.prune(home),
                0..=3 if steady => self.save(home, &mut vm),
                4..=6 => self.restore(home),
                7..=8 if steady => self.roll_back(home, &mut vm),
                _ => self.remove_one(home),
            }
            self.vm = Some(vm);
        }
    }

    fn save(&mut self, home: &Home, vm: &mut Vm) {
        let (word, question) = (self.next("word"), self.next("q"));
        let output = guest_word::change(home, &vm.name, &question, &word);
        vm.words.insert(0, word.clone());
        if !output.status.success() {
            return self.failures.note("a change in the guest", &[&vm.id], &output);
        }
        vm.words.truncate(1);
        let name = self.next("saved");
        let mut arguments = vec!["snapshot", "create", &vm.name, "--name", &name];
        if self.dice.roll(4) == 0 {
            arguments.push("--full");
        }
        let output = home.run(&arguments);
        let uncertain = !output.status.success();
        if uncertain {
            self.failures.note("snapshot create", &[&vm.id], &output);
        }
        self.saved.insert(name, Saved { vm: vm.id.clone(), word, uncertain });
    }

    fn any(&mut self, of: Option<&str>) -> Option<(String, Saved)> {
        let fit = self.saved.iter().filter(|(_, one)| !one.uncertain && of.is_none_or(|id| one.vm == id));
        let fit: Vec<_> = fit.map(|(name, one)| (name.clone(), one.clone())).collect();
        self.dice.pick(&fit)
    }

    fn restore(&mut self, home: &Home) {
        let Some((name, saved)) = self.any(None) else { return };
        let (copy, question) = (self.next("copy"), self.next("q"));
        self.uncertain.push(copy.clone());
        let output = home.run(&["--output", "json", "restore", &name, "--name", &copy]);
        if !output.status.success() {
            return self.failures.note("restore", &[], &output);
        }
        let output = guest_word::look(home, &copy, &question);
        if output.status.success() {
            assert_eq!(guest_word::wrong(&output, &copy, &saved.word), None, "{copy} of {name}");
        } else {
            self.failures.note("a look into a copy", &[], &output);
        }
    }

    fn roll_back(&mut self, home: &Home, vm: &mut Vm) {
        let Some((name, saved)) = self.any(Some(&vm.id)) else { return };
        let output = home.run(&["rollback", &vm.name, &name]);
        if output.status.success() {
            vm.words = vec![saved.word];
        } else {
            self.failures.note("rollback", &[&vm.id], &output);
            vm.words.insert(0, saved.word);
        }
    }

    fn prune(&mut self, home: &Home) {
        let output = home.run(&["snapshot", "prune", "--named", "--keep", "3"]);
        for name in text(&output.stdout).lines() {
            assert!(self.saved.remove(name).is_some(), "{name} was pruned, and nobody knew it");
        }
        if !output.status.success() {
            self.failures.note("snapshot prune", &[], &output);
            self.saved.values_mut().for_each(|one| one.uncertain = true);
        }
    }

    fn remove_one(&mut self, home: &Home) {
        let Some((name, _)) = self.any(None) else { return };
        let output = home.run(&["--output", "json", "snapshot", "rm", &name]);
        if output.status.success() {
            self.saved.remove(&name);
        } else if !text(&output.stderr).contains("build on it") {
            self.failures.note("snapshot rm", &[], &output);
            self.saved.get_mut(&name).unwrap().uncertain = true;
        }
    }

    pub(crate) fn check(&mut self, home: &Home, blow: &Blow, known: &BTreeSet<String>) -> BTreeSet<String> {
        self.failures.check(blow, known);
        for name in std::mem::take(&mut self.uncertain) {
            remove(home, &name);
        }
        let listed = home.json(&["snapshot", "ls"]);
        let word = |one: &serde_json::Value| one["name"].as_str().unwrap().to_owned();
        let listed: BTreeSet<String> = listed["snapshots"].as_array().unwrap().iter().map(word).collect();
        for name in &listed {
            // Listed means whole, whether or not its maker was told.
            self.saved
                .get_mut(name)
                .unwrap_or_else(|| panic!("{name} is listed, nobody took it"))
                .uncertain = false;
        }
        let lost: Vec<&String> =
            self.saved.iter().filter(|(_, one)| !one.uncertain).map(|(name, _)| name).collect();
        let lost: Vec<_> = lost.into_iter().filter(|name| !listed.contains(*name)).collect();
        assert!(lost.is_empty(), "snapshots lost: {lost:?}");
        self.saved.retain(|name, _| listed.contains(name));
        if let Some((name, saved)) = self.any(None) {
            let (copy, question) = (self.next("copy"), self.next("q"));
            home.must(&["restore", &name, "--name", &copy]);
            let id = id_of(&home.json(&["inspect", &copy]));
            Vm { name: copy.clone(), id, words: vec![saved.word] }.expect_whole(home, &question);
            home.must(&["rm", &copy]);
        }
        let mut vm = self.vm.take().unwrap();
        let state = home.state(&vm.name).0;
        // A rollback that was cut off leaves a VM that is stopped.
        if blow.struck.contains(&vm.id) || (vm.words.len() > 1 && state == "stopped") {
            remove(home, &vm.name);
        } else {
            vm.expect_whole(home, &self.next("q"));
            self.vm = Some(vm);
        }
        self.vm.iter().map(|vm| vm.name.clone()).collect()
    }
}
