//! The guest's memory as the host sees it: a private mapping over an immutable base file in the QEMU process.
//!
//! Pages that the machine has changed are the anonymous pages of that mapping. They are found through the page map and copied
//! from (or, before a saved state is loaded, to) the process without its help. Where the kernel can note which pages are
//! written, they are copied while the guest runs, and in its pause only those that were written meanwhile.

pub(crate) mod boot_files;
mod copy;
mod harvest;
pub(crate) mod host_memory;
mod mapping;
mod merge;
#[cfg(test)]
mod patterns;
mod scan;
mod write_log;

pub(crate) use copy::inject;
pub(crate) use harvest::{Harvest, Harvested};
pub(crate) use mapping::{Mapping, MemoryFile};
pub(crate) use write_log::copies_ahead;
