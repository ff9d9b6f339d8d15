//! The six test levels: which tests belong to each, and what it needs.

use std::time::Duration;

/// One level.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) number: u8,
    pub(crate) name: &'static str,
    /// Which tests, in nextest's language. A test's level is the first word of its file's name in `tests/`; tests
    /// inside a crate, and those in other files, are of level 1.
    pub(crate) filter: &'static str,
    /// Profile of `.config/nextest.toml`.
    pub(crate) profile: &'static str,
    /// Longest time for the level as a whole.
    pub(crate) limit: Duration,
}

/// All levels, in the order in which they are run.
pub(crate) const LEVELS: [Level; 6] = [
    Level {
        number: 1,
        name: "unit",
        filter: "not binary(/^(conformance|service|cli|host|machine)(_.*)?$/)",
        profile: "default",
        limit: Duration::from_secs(15 * 60),
    },
    Level {
        number: 2,
        name: "conformance",
        filter: "binary(/^conformance(_.*)?$/)",
        profile: "default",
        limit: Duration::from_secs(10 * 60),
    },
    Level {
        number: 3,
        name: "service",
        filter: "binary(/^service(_.*)?$/)",
        profile: "default",
        limit: Duration::from_secs(10 * 60),
    },
    Level {
        number: 4,
        name: "command line",
        filter: "binary(/^cli(_.*)?$/)",
        profile: "default",
        limit: Duration::from_secs(10 * 60),
    },
    Level {
        number: 5,
        name: "host",
        filter: "binary(/^host(_.*)?$/)",
        profile: "host",
        limit: Duration::from_secs(10 * 60),
    },
    Level {
        number: 6,
        name: "machine",
        filter: "binary(/^machine(_.*)?$/)",
        profile: "machine",
        limit: Duration::from_secs(30 * 60),
    },
];

/// How many tests did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Reads nextest's summary line; tests it left out because they are of another level are not counted.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let line = line.trim_start();
        let rest = line
            .strip_prefix("Summary [")
            .and_then(|rest| rest.split_once("tests run:").or_else(|| rest.split_once("test run:")))?
            .1;
        let mut counts = Self::default();
        for part in rest.split(',') {
            // "19 passed (2 slow)", "1 failed", "1 timed out", "30 skipped" …
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) =
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => counts.passed += number,
                "skipped" => {}
                _ => counts.failed += number,
            }
        }
        Some(counts)
    }

    pub(crate) const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read() {
        let read = |line| Counts::read(line).unwrap();
        let counts = |passed, failed| Counts { passed, failed, skipped: 0 };
        assert_eq!(read("     Summary [   0.965s] 19 tests run: 19 passed, 0 skipped"), counts(19, 0));
        assert_eq!(
            read("  Summary [ 1s] 9 tests run: 6 passed (1 slow), 2 failed, 1 timed out, 4 skipped"),
            counts(6, 3)
        );
        assert_eq!(read("Summary [ 1s] 1 test run: 1 passed, 4 skipped"), counts(1, 0));
        assert_eq!(Counts::read("PASS [ 0.1s] crate tests::x"), None);
    }
}
