//! Memory for lists of all guests together.

use std::sync::Arc;

use microvm_ports::GuestError;
use microvm_types::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that are charged at once.
const UNIT: usize = 64 << 10;

/// Most bytes of lists that are being read, of all guests together: four of the largest.
const MOST: usize = 128 << 20;

/// The budget. Clones are the same budget.
#[derive(Debug, Clone)]
pub(crate) struct ListMemory(Arc<Semaphore>);

impl Default for ListMemory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST / UNIT)))
    }
}

impl ListMemory {
    /// Nothing yet, for one list.
    pub(crate) fn begin(&self) -> Held {
        Held { budget: Arc::clone(&self.0), permit: None }
    }
}

/// Bytes charged for one list; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Holds `bytes` in all, if that is more than it holds.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] while the lists of others take the room.
    pub(crate) fn reach(&mut self, bytes: usize) -> Result<(), GuestError> {
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.div_ceil(UNIT).saturating_sub(held)).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        // Never waited for: two lists that each hold what the other one needs would wait for ever.
        let permit =
            Arc::clone(&self.budget).try_acquire_many_owned(more).map_err(|_| GuestError::Refused {
                kind: ErrorKind::Exhausted,
                message: format!(
                    "lists of guests take {} MiB of the server already: ask again later",
                    MOST >> 20
                ),
            })?;
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_share_one_budget() {
        let memory = ListMemory::default();
        let (mut first, mut second) = (memory.begin(), memory.begin());
        first.reach(MOST - UNIT).unwrap();
        first.reach(1).unwrap();
        second.reach(UNIT).unwrap();
        assert!(matches!(
            second.reach(UNIT + 1),
            Err(GuestError::Refused { kind: ErrorKind::Exhausted, .. })
        ));
        assert!(memory.begin().reach(1).is_err());
        drop(first);
        second.reach(2 * UNIT).unwrap();
        drop(second);
        memory.begin().reach(MOST).unwrap();
    }
}
