//! Limit of this host's disk space that a guest may fill.

use microvm_types::{ByteSize, ErrorKind};

use crate::error::ClientError;

/// Bytes counted for every directory: file systems give each a block of its own.
pub(crate) const DIRECTORY: u64 = 4096;

/// Counts what is really written, holes not included.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    left: u64,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { limit, left: limit }
    }

    /// The given limit; else twice the disk of the VM (MiB), which does not count what comes from its image.
    #[must_use]
    pub fn chosen(limit: Option<ByteSize>, disk_mib: u32) -> Self {
        // Bits 20 for MiB, and one more for twice.
        Self::new(limit.map_or(u64::from(disk_mib) << 21, ByteSize::bytes))
    }

    /// Takes away what was written.
    ///
    /// # Errors
    /// Once it is more than the limit; then the copy has to end.
    pub(crate) fn charge(&mut self, bytes: u64) -> Result<(), ClientError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(ClientError::refused(
                ErrorKind::Exhausted,
                "transfer_too_large",
                format!(
                    "the guest sent more than the {} that may be written here: copy less, or raise that limit",
                    ByteSize(self.limit)
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_its_limit_and_not_before() {
        let mut budget = Budget::chosen(None, 1);
        budget.charge(1 << 20).unwrap();
        budget.charge(1 << 20).unwrap();
        let Err(ClientError::Local(problem)) = budget.charge(1) else { panic!("too much was allowed") };
        assert_eq!((problem.code.as_str(), problem.kind), ("transfer_too_large", ErrorKind::Exhausted));
        assert!(problem.detail.contains("raise that limit"));
    }
}
