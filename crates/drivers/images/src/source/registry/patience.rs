//! Time limits and repeated tries with registries.

use std::time::Duration;

use microvm_ports::StorageError;

/// Times and numbers of tries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a connection, TLS included.
    pub(super) connect: Duration,
    /// From a request to the head of its answer.
    pub(super) answer: Duration,
    /// For a whole manifest or token.
    pub(super) document: Duration,
    /// In this time at least [`Patience::least`] bytes of a piece must come.
    pub(super) window: Duration,
    pub(super) least: u64,
    /// Tries of one request; of a piece, tries between which less than [`Patience::progress`] bytes came.
    pub(super) tries: u32,
    pub(super) progress: u64,
    /// Rest before the second try; it doubles.
    pub(super) rest: Duration,
    /// For all requests that lead to the manifest: redirects, tokens, indexes and tries included.
    pub(super) manifest: Duration,
    /// For the whole image.
    pub(super) image: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            document: Duration::from_secs(60),
            window: Duration::from_secs(60),
            least: 64 << 10,
            tries: 5,
            progress: 16 << 20,
            rest: Duration::from_millis(500),
            manifest: Duration::from_secs(600),
            image: Duration::from_secs(24 * 3600),
        }
    }
}

/// Longest rest that a registry may ask for (`Retry-After`).
const REST_MAX: Duration = Duration::from_secs(30);

/// Reason for which a try did not succeed.
#[derive(Debug)]
pub(super) enum Failed {
    /// Another try would end like this one.
    Final(StorageError),
    /// Another try may help, after this time if the registry says one.
    Again(String, Option<Duration>),
}

impl Failed {
    pub(super) fn finally(reason: impl Into<String>) -> Self {
        Self::Final(StorageError::Registry(plain(&reason.into())))
    }

    pub(super) fn again(reason: impl Into<String>) -> Self {
        Self::Again(reason.into(), None)
    }
}

/// The tries of one thing.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    failed: u32,
}

impl Tries {
    pub(super) const fn new(patience: Patience) -> Self {
        Self { patience, failed: 0 }
    }

    /// Counts from the beginning again.
    pub(super) const fn reset(&mut self) {
        self.failed = 0;
    }

    /// Rests before the next try.
    ///
    /// # Errors
    /// The reason, if there is no next try.
    pub(super) async fn rest(&mut self, failed: Failed) -> Result<(), StorageError> {
        let (reason, asked) = match failed {
            Failed::Final(error) => return Err(error),
            Failed::Again(reason, asked) => (reason, asked),
        };
        self.failed += 1;
        if self.failed >= self.patience.tries {
            return Err(StorageError::Registry(plain(&format!("{reason} ({} tries)", self.failed))));
        }
        let rest = asked.unwrap_or(self.patience.rest * 2u32.pow(self.failed - 1)).min(REST_MAX);
        tracing::debug!(reason, ?rest, "a registry is asked again");
        tokio::time::sleep(rest).await;
        Ok(())
    }
}

/// Text that holds words of a registry, short and without control characters.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}
