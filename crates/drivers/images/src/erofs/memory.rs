//! Memory for the trees of all images that are being made.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::tree::PathError;

/// Bytes left for all trees together. Clones share one budget.
#[derive(Debug, Clone)]
pub(crate) struct TreeMemory(Arc<AtomicUsize>);

impl TreeMemory {
    pub(crate) fn of(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }
}

/// Bytes charged for one tree; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    of_all: TreeMemory,
    /// Bytes that this tree may still take.
    left: usize,
    held: usize,
}

impl Held {
    pub(super) fn new(of_all: TreeMemory, most: usize) -> Self {
        Self { of_all, left: most, held: 0 }
    }

    /// Takes memory before it is held.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), PathError> {
        let left = self.left.checked_sub(bytes).ok_or_else(|| {
            PathError("its names, links and attributes need more memory than an image may".into())
        })?;
        let taken =
            self.of_all.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| all.checked_sub(bytes));
        taken.map_err(|_| {
            PathError(
                "other images that are being made hold the memory it needs: try again when they are done"
                    .into(),
            )
        })?;
        (self.left, self.held) = (left, self.held + bytes);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of_all.0.fetch_add(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_made_at_once_share_one_budget() {
        let all = TreeMemory::of(100);
        let (mut first, mut second) = (Held::new(all.clone(), 100), Held::new(all.clone(), 100));
        first.charge(70).unwrap();
        assert!(second.charge(31).unwrap_err().0.contains("other images"));
        second.charge(30).unwrap();
        drop(first);
        second.charge(70).unwrap();
        assert!(second.charge(1).unwrap_err().0.contains("more memory than an image may"));
        drop(second);
        Held::new(all, 100).charge(100).unwrap();
    }
}
