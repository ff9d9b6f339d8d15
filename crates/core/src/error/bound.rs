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
    /// The memory that the machine of the VM was made with.
    Creation,
}

impl Bound {
    /// The bound in words, with what to do.
    pub(super) fn told(self, field: &str, limit: &u64) -> Told {
        Told { bound: self, limit: *limit, unit: unit(field) }
    }
}

/// Unit of the numbers of a field, as it stands behind one; empty where they are counts.
pub(crate) fn unit(field: &str) -> &'static str {
    match field {
        _ if field.ends_with("_mib") => " MiB",
        _ if field.ends_with("_percent") => " %",
        _ => "",
    }
}

/// A bound with its number, for errors.
pub(super) struct Told {
    bound: Bound,
    limit: u64,
    unit: &'static str,
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, unit, .. } = self;
        match self.bound {
            Bound::Operator => {
                write!(formatter, "the limit of {limit}{unit}: ask for less, or have the limit raised")
            }
            Bound::Hypervisor => {
                write!(formatter, "{limit}{unit}, the most that this hypervisor can give: ask for less")
            }
            Bound::Processors => {
                write!(
                    formatter,
                    "the {limit}{unit} that its processors are: ask for less, or for more processors"
                )
            }
            Bound::Creation => {
                write!(
                    formatter,
                    "the {limit}{unit} that its machine was made with: ask for less, or create a VM with a larger `memory_max_mib`, which a \
                     resize can go up to"
                )
            }
        }
    }
}
