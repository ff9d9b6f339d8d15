//! Who takes part in the storm.

pub(crate) mod acquirer;
pub(crate) mod check;
pub(crate) mod forker;
pub(crate) mod killer;
pub(crate) mod saver;

use std::collections::BTreeSet;
use std::process::Output;

use crate::support::{Home, guest_word, text};
use killer::Blow;

/// A VM of somebody's.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) id: String,
    /// Words that it may hold; several if a change of it was cut off.
    pub(crate) words: Vec<String>,
}

impl Vm {
    /// Looks whether it runs and knows its word.
    pub(crate) fn expect_whole(&mut self, home: &Home, question: &str) {
        assert_eq!(home.state(&self.name).0, "running", "{self:?}: {:?}", home.state(&self.name));
        let output = guest_word::look(home, &self.name, question);
        let right =
            self.words.iter().find(|word| guest_word::wrong(&output, &self.name, word).is_none()).cloned();
        match right {
            Some(word) => self.words = vec![word],
            // A change that was cut off is done again, and must succeed now.
            None if self.words.len() > 1 => {
                let word = self.words.remove(0);
                let output = guest_word::change(home, &self.name, &format!("again-{question}"), &word);
                assert!(output.status.success(), "{self:?}: {}", text(&output.stderr));
                self.words = vec![word];
            }
            None => panic!("{self:?} says {:?}", guest_word::wrong(&output, &self.name, &self.words[0])),
        }
    }
}

/// Commands that failed.
#[derive(Default)]
pub(crate) struct Failures(Vec<Failure>);

struct Failure {
    command: String,
    /// VMs it needed that were known before.
    needed: Vec<String>,
    said: String,
}

impl Failures {
    /// Besides what it `needed` a command may need VMs that it makes or takes.
    pub(crate) fn note(&mut self, command: &str, needed: &[&str], output: &Output) {
        let needed = needed.iter().map(|id| (*id).to_owned()).collect();
        self.0.push(Failure { command: command.to_owned(), needed, said: text(&output.stderr) });
    }

    /// Only who needed somebody that was struck has an excuse. `known`: VMs that were somebody's before the round.
    pub(crate) fn check(&mut self, blow: &Blow, known: &BTreeSet<String>) {
        for Failure { command, needed, said } in self.0.drain(..) {
            let excused = blow.struck.iter().any(|id| needed.contains(id) || !known.contains(id));
            assert!(blow.server || excused, "{command} failed, and nobody killed what it needs: {said}");
        }
    }
}

/// Removes a VM of which nothing is known.
pub(crate) fn remove(home: &Home, name: &str) {
    let output = home.run(&["rm", name]);
    let gone = output.status.success() || output.status.code() == Some(102);
    assert!(gone, "{name} cannot be removed: {}", text(&output.stderr));
}

/// The id in the description of a VM.
pub(crate) fn id_of(vm: &serde_json::Value) -> String {
    vm["id"].as_str().unwrap().to_owned()
}

/// Makes a VM with a word before a round.
pub(crate) fn make(home: &Home, name: &str, word: &str) -> Vm {
    let made = home.json(&["create", "--name", name, "--memory", "256MiB"]);
    let output = guest_word::plant(home, name, word);
    assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    Vm { name: name.to_owned(), id: id_of(&made), words: vec![word.to_owned()] }
}
