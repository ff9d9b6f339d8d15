//! The epoch of this guest. The number lives in the guest's memory: a child or a restored machine begins with that of its
//! parent. Once it has an identity of its own, a host of the parent's epoch is refused.

use microvm_protocol::messages::FailureKind;

use super::failure::{AgentError, AgentResult};

/// The newest epoch whose identity this guest has begun to take over; 0 before the first.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    newest: u64,
}

impl Epoch {
    /// The newest epoch.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Returns true if a host may open a session in `epoch`. The present one is allowed: a host that lost its connection
    /// comes back.
    pub(super) fn admits(&self, epoch: u64) -> bool {
        epoch >= self.newest
    }

    /// Enters a newer epoch, to take over its identity. Each is entered once, also if its identity then fails: a host whose
    /// guest did not confirm needs another epoch.
    ///
    /// # Errors
    /// [`FailureKind::Conflict`] if it is not newer.
    pub(super) fn enter(&mut self, epoch: u64) -> AgentResult<()> {
        if epoch <= self.newest {
            let message = format!("epoch {epoch} is not newer than {}, which this guest is in", self.newest);
            return Err(AgentError::new(FailureKind::Conflict, message));
        }
        self.newest = epoch;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_epoch_brings_an_identity_and_an_older_one_not_even_a_session() {
        let mut epoch = Epoch::default();
        assert!(epoch.enter(0).is_err(), "0 is no epoch");
        assert!(epoch.admits(3) && epoch.enter(3).is_ok());
        assert!(!epoch.admits(2) && epoch.admits(3) && epoch.admits(4));
        assert!(
            epoch.enter(2).is_err() && epoch.enter(3).is_err(),
            "it never goes back, and none is entered twice"
        );
        assert_eq!(epoch.newest(), 3);
        assert!(epoch.enter(u64::MAX).is_ok());
    }
}
