//! Which epoch this guest is in. The number lives in the guest's memory, so a child or a restored machine knows the one
//! its parent had; once it has been told who it is itself, a host of that epoch is refused.

use microvm_protocol::messages::FailureKind;

use crate::failure::{AgentError, AgentResult};

/// The newest epoch whose identity this guest has begun to take over; 0 before the first.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    newest: u64,
}

impl Epoch {
    /// The newest one.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether a host may open a session in `epoch`. The present one is fine: a host that lost its connection comes back.
    pub(crate) fn admits(&self, epoch: u64) -> bool {
        epoch >= self.newest
    }

    /// Enters a newer epoch, to take its identity over. Each is entered once, whatever becomes of its identity: a host
    /// whose guest has not confirmed it needs another one.
    pub(crate) fn enter(&mut self, epoch: u64) -> AgentResult<()> {
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
