//! The guest's memory as the host sees it: a private mapping over an immutable base file in the QEMU process.
//!
//! What the machine has changed are the anonymous pages of that mapping. They are found through the page map and copied
//! from (or, before a saved state is loaded, to) the process without its help.

mod copy;
mod mapping;
mod scan;

pub(crate) use copy::{PageBuffer, inject, total};
pub(crate) use mapping::{Mapping, MemoryFile};
pub(crate) use scan::changed_pages;
