//! What bounds a number that was asked for.

use std::fmt;

/// Bound of a number that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A limit that the operator of the server can raise.
    Operator,
    /// What the hypervisor of the VM can do.
    Hypervisor,
    /// The processors of the VM, each 100 percent.
    Processors,
    /// The size that the VM was created with.
    Creation,
}

impl Bound {
    /// The bound in words, with what to do.
    pub(super) const fn told(self, limit: &u64) -> Told {
        Told { bound: self, limit: *limit }
    }
}

/// A bound with its number, for errors.
pub(super) struct Told {
    bound: Bound,
    limit: u64,
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit;
        match self.bound {
            Bound::Operator => {
                write!(formatter, "the limit of {limit}: ask for less, or have the limit raised")
            }
            Bound::Hypervisor => {
                write!(formatter, "{limit}, the most that this hypervisor can give: ask for less")
            }
            Bound::Processors => {
                write!(formatter, "the {limit} that its processors are: ask for less, or for more processors")
            }
            Bound::Creation => {
                write!(
                    formatter,
                    "the {limit} that the VM was created with: ask for less, or create a larger one"
                )
            }
        }
    }
}
