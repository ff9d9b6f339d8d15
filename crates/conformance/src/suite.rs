//! Runs named checks, goes on after a failure, and reports all failures at the end.

use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;

/// One run of a suite over one driver.
#[derive(Debug)]
pub struct Suite {
    name: &'static str,
    limit: Duration,
    passed: usize,
    failures: Vec<String>,
}

impl Suite {
    /// A suite whose checks may each take up to `limit`.
    #[must_use]
    pub const fn new(name: &'static str, limit: Duration) -> Self {
        Self { name, limit, passed: 0, failures: Vec::new() }
    }

    /// Runs one check. A panic in it, or running over the time limit, is a failure; the next check runs all the same.
    pub async fn check(&mut self, name: &str, body: impl Future<Output = ()>) {
        let guarded = AssertUnwindSafe(body).catch_unwind();
        match tokio::time::timeout(self.limit, guarded).await {
            Ok(Ok(())) => self.passed += 1,
            Ok(Err(panic)) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("it panicked without a text");
                self.failures.push(format!("{name}: {text}"));
            }
            Err(_) => self.failures.push(format!("{name}: not done within {:?}", self.limit)),
        }
    }

    /// Says that a check is left out and why.
    #[expect(clippy::print_stderr, reason = "suites are run by tests, and a skip must be seen")]
    pub fn skip(&self, name: &str, why: &str) {
        eprintln!("SKIPPED: {}: {name}: {why}", self.name);
    }

    /// Ends the run.
    ///
    /// # Panics
    /// If a check failed, with the texts of all that did; also if no check ran at all.
    pub fn finish(self) {
        assert!(self.passed + self.failures.len() > 0, "the suite `{}` ran no check", self.name);
        assert!(
            self.failures.is_empty(),
            "the suite `{}`: {} passed, {} failed\n  - {}",
            self.name,
            self.passed,
            self.failures.len(),
            self.failures.join("\n  - ")
        );
    }
}

/// Ends a check with a clear text where a result is not what was promised.
pub trait Must<T, E> {
    /// The value.
    ///
    /// # Panics
    /// With `what` and the error if there is none.
    #[track_caller]
    fn must(self, what: &str) -> T;

    /// The error.
    ///
    /// # Panics
    /// With `what` if it succeeded.
    #[track_caller]
    fn must_fail(self, what: &str) -> E;
}

impl<T, E: Display> Must<T, E> for Result<T, E> {
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    fn must_fail(self, what: &str) -> E {
        match self {
            Ok(_) => panic!("{what}: it succeeded"),
            Err(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_failures_are_reported_and_a_hanging_check_is_one() {
        let mut suite = Suite::new("example", Duration::from_millis(20));
        suite.check("good", async {}).await;
        suite.check("bad", async { panic!("no {}", 1) }).await;
        suite.check("hangs", std::future::pending()).await;
        let panic = std::panic::catch_unwind(AssertUnwindSafe(|| suite.finish())).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("1 passed, 2 failed"), "{text}");
        assert!(text.contains("bad: no 1") && text.contains("hangs: not done within 20ms"), "{text}");
    }
}
