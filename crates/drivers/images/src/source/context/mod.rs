//! Files of a folder of the host, the context of an ordered build, put into an image.
//!
//! The context may come from anybody: a link in it, also one that is changed while it is read, leads nowhere outside. Everything is
//! opened below one descriptor (`openat2` with `RESOLVE_BENEATH`).
//!
//! ```text
//! ignored ─▶ walk (finds sources, reads folders) ─▶ place (into the image) | key (for the build cache)
//! ```

mod ignored;
mod key;
mod owner;
mod pattern;
mod place;
mod walk;

pub(crate) use key::hash;
use microvm_durable::cancel::Cancel;
use microvm_ports::StorageError;
use microvm_ports::storage::Placement;
pub(crate) use place::add;

/// Finds what is wrong with placements without reading contents.
pub(crate) fn check(placements: &[Placement], cancel: &Cancel) -> Result<(), StorageError> {
    placements.iter().try_for_each(|placement| match placement {
        Placement::Copy(step) => place::check(step, cancel),
        Placement::Directory(step) => place::check_directory(step),
    })
}
