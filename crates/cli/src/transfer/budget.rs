//! How much of this host's disk a guest may fill.

use microvm_types::{ByteSize, ErrorKind};

use crate::error::CliError;

/// What is taken for every directory, in bytes: file systems give each a block of its own.
pub(crate) const DIRECTORY: u64 = 4096;

/// Counts what is really written, holes not included.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    left: u64,
}

impl Budget {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { limit, left: limit }
    }

    /// What was asked for; else twice the disk of the VM, which does not count what comes from its image.
    pub(crate) fn chosen(limit: Option<ByteSize>, disk_mib: u32) -> Self {
        Self::new(limit.map_or(u64::from(disk_mib) << 21, ByteSize::bytes))
    }

    /// Takes away what was written.
    ///
    /// # Errors
    /// Once it is more than the limit; then the copy has to end.
    pub(crate) fn charge(&mut self, bytes: u64) -> Result<(), CliError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(CliError::new(
                ErrorKind::Exhausted,
                "transfer_too_large",
                format!(
                    "the guest sent more than the {} that may be written here: copy less, or allow more with \
                     --max-bytes",
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
        let Err(CliError::Problem(problem)) = budget.charge(1) else { panic!("too much was allowed") };
        assert_eq!((problem.code.as_str(), problem.kind), ("transfer_too_large", ErrorKind::Exhausted));
        assert!(problem.detail.contains("--max-bytes"));
    }
}
