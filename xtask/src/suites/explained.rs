//! The list of failures that have a reason.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::Kind;
use super::results::Results;

const LIST: &str = include_str!("explained.txt");

/// Failures by file system and test.
#[derive(Debug, Default)]
pub(super) struct Explained(BTreeMap<(String, String), Happens>);

/// Whether a failure is the same on every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    Always,
    /// It depends on what the shared folder lies on.
    OnSomeHosts,
}

impl Explained {
    /// The list beside this file.
    pub(super) fn read() -> Result<Self> {
        Self::parse(LIST)
    }

    /// A reason is a paragraph of lines that begin with `#`; below it stand the failures that it explains, each as file
    /// systems, separated by commas, and the name of a test. `share?` is a failure that some hosts do not have.
    fn parse(text: &str) -> Result<Self> {
        let (mut list, mut reason, mut in_reason) = (Self::default(), String::new(), false);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(words) = line.strip_prefix('#') {
                if !std::mem::replace(&mut in_reason, true) {
                    reason.clear();
                }
                reason.push_str(words);
                continue;
            }
            in_reason = false;
            let Some((kinds, test)) = line.split_once(' ') else {
                bail!("explained.txt: {line:?} names no test")
            };
            if reason.trim().is_empty() {
                bail!("explained.txt: {test} has no reason");
            }
            for kind in kinds.split(',') {
                let (kind, happens) = match kind.strip_suffix('?') {
                    Some(kind) => (kind, Happens::OnSomeHosts),
                    None => (kind, Happens::Always),
                };
                if !Kind::ALL.iter().any(|known| known.name() == kind) {
                    bail!("explained.txt: {kind:?} is no file system");
                }
                let key = (kind.to_owned(), test.trim().to_owned());
                if list.0.insert(key, happens).is_some() {
                    bail!("explained.txt: {kind} {test} is there twice");
                }
            }
        }
        Ok(list)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// What is not as the list says, each in a line.
    pub(super) fn compare(&self, kind: &str, results: &Results) -> Vec<String> {
        let new = results
            .failed
            .iter()
            .filter(|(test, _)| !self.0.contains_key(&(kind.to_owned(), (*test).clone())));
        let new = new.map(|(test, said)| format!("{kind} {test} fails, which nothing explains: {said}"));
        let gone = self.0.iter().filter(|((of, test), happens)| {
            of == kind && **happens == Happens::Always && !results.failed.contains_key(test)
        });
        let gone =
            gone.map(|((_, test), _)| format!("{kind} {test} does not fail any more: take it off the list"));
        new.chain(gone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_read() {
        Explained::read().unwrap();
    }

    #[test]
    fn what_is_new_and_what_is_gone_are_told() {
        let list = Explained::parse("# because\n# of this\nshare,root a::b\n\n# that\next4 c\n").unwrap();
        assert_eq!(list.count(), 3);
        let mut results = Results::default();
        results.add("a::b", false, "said");
        assert!(list.compare("root", &results).is_empty());
        results.add("new", false, "said");
        assert!(list.compare("root", &results)[0].contains("new fails"));
        let told = list.compare("ext4", &results);
        assert!(told.len() == 3 && told[2].contains("c does not fail any more"), "{told:?}");
        let list = Explained::parse("# because\nshare? sometimes\n").unwrap();
        assert!(list.compare("share", &Results::default()).is_empty());
        results = Results::default();
        results.add("sometimes", false, "said");
        assert!(list.compare("share", &results).is_empty());
    }

    #[test]
    fn lists_without_reasons_are_refused() {
        for bad in ["root a", "# x\nrut a", "# x\nroot a\n# y\nroot a", "# x\nroot"] {
            assert!(Explained::parse(bad).is_err(), "{bad}");
        }
    }
}
