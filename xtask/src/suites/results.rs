//! What a suite says of its tests.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Results on one file system.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) passed: usize,
    /// Names with what was said.
    pub(super) failed: BTreeMap<String, String>,
    pub(super) skipped: BTreeSet<String>,
    /// All that the suites printed.
    pub(super) text: String,
}

impl Results {
    /// Reads what `pjdfstest` printed: a line for each test, and what it says of one that failed in the lines below.
    pub(super) fn of_pjdfstest(text: &str) -> Result<Self> {
        let mut results = Self { text: text.to_owned(), ..Self::default() };
        let mut last: Option<String> = None;
        for line in text.lines() {
            if line.starts_with(char::is_whitespace) {
                if let Some(said) = last.as_ref().and_then(|name| results.failed.get_mut(name)) {
                    said.push_str(line.trim());
                    said.push(' ');
                }
                continue;
            }
            let Some((name, outcome)) = line.split_once(char::is_whitespace) else { continue };
            last = Some(name.to_owned());
            match outcome.trim() {
                "ok" => results.passed += 1,
                "FAILED" => drop(results.failed.insert(name.to_owned(), String::new())),
                "skipped" => drop(results.skipped.insert(name.to_owned())),
                _ => last = None,
            }
        }
        let counted = results.passed + results.failed.len() + results.skipped.len();
        // The last line counts all of them: without it the suite did not come to its end.
        let said = text.lines().rev().find_map(|line| line.strip_prefix("Summary: ")).and_then(total);
        if said == Some(counted) && counted > 0 {
            Ok(results)
        } else {
            bail!("pjdfstest did not come to its end: {counted} results of {said:?} were read:\n{text}")
        }
    }

    /// Counts what was skipped as failed unless it is in `usual`: a file system that lacks something is one that differs.
    pub(super) fn fail_skipped(&mut self, usual: &BTreeSet<String>) {
        for name in self.skipped.extract_if(.., |name| !usual.contains(name)) {
            self.failed.insert(name, "it is skipped here, and runs on ext4".to_owned());
        }
    }

    /// Adds one result.
    pub(super) fn add(&mut self, name: &str, passed: bool, text: &str) {
        self.text.push_str(text);
        if passed {
            self.passed += 1;
        } else {
            let end = text.lines().rev().take(3).collect::<Vec<_>>();
            self.failed.insert(name.to_owned(), end.into_iter().rev().collect::<Vec<_>>().join(" / "));
        }
    }
}

/// `… 412 total`
fn total(summary: &str) -> Option<usize> {
    let mut words = summary.split_whitespace().rev();
    (words.next() == Some("total")).then(|| words.next()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
chmod::ctime::fifo          ok
chown::who                  FAILED
\tassertion failed: 1 == 2
\tmore of it
chflags::all                skipped
\trequires features: chflags

Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total
";

    #[test]
    fn every_test_is_counted() {
        let mut results = Results::of_pjdfstest(TEXT).unwrap();
        assert_eq!((results.passed, results.skipped.len()), (1, 1));
        assert_eq!(results.failed["chown::who"], "assertion failed: 1 == 2 more of it ");
        results.fail_skipped(&["chflags::all".to_owned()].into());
        assert_eq!(results.skipped.len(), 1);
        results.fail_skipped(&BTreeSet::new());
        assert!(results.skipped.is_empty() && results.failed.contains_key("chflags::all"));
        results.add("fsx::seed_1", false, "a\nb\nc\nd\n");
        assert_eq!(results.failed["fsx::seed_1"], "b / c / d");
    }

    #[test]
    fn a_suite_that_was_cut_off_has_no_results() {
        for cut in ["", &TEXT[..60], &TEXT.replace("3 total", "4 total")] {
            assert!(Results::of_pjdfstest(cut).is_err(), "{cut}");
        }
    }
}
