//! What of placements counts for the key of a build: all that goes into the image, and no times.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use microvm_durable::cancel::Cancel;
use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use microvm_ports::storage::Placement;
use sha2::{Digest as _, Sha256};

use super::walk::Context;
use crate::source::build_key::Budget;

/// Hashes the files of all placements; what the steps say is hashed by the caller.
pub(crate) fn hash(
    hasher: &mut Sha256,
    placements: &[Placement],
    budget: &mut Budget,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    for placement in placements {
        let Placement::Copy(step) = placement else { continue };
        let context = Context::open(step, cancel)?;
        for source in context.sources()? {
            part(hasher, &source.path);
            context.walk(&source, |entry| {
                budget.take(&step.title, if entry.metadata.is_file() { entry.metadata.len() } else { 0 })?;
                part(hasher, entry.path);
                hasher.update(entry.metadata.mode().to_le_bytes());
                if entry.metadata.is_symlink() {
                    part(hasher, &context.target(&source, entry)?);
                } else if entry.metadata.is_file() {
                    let file = context.read(&source, entry)?;
                    // What grows meanwhile is not followed.
                    let mut file = file.take(entry.metadata.len());
                    let mut content = Sha256::new();
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        cancel.check()?;
                        let count = file
                            .read(&mut buffer)
                            .map_err(|error| bad_input(&*step.title, error.to_string()))?;
                        if count == 0 {
                            break;
                        }
                        content.update(&buffer[..count]);
                    }
                    hasher.update(content.finalize());
                }
                Ok(())
            })?;
            // The end of a source, so that entries cannot move from one to the next.
            part(hasher, b"/");
        }
    }
    Ok(())
}

/// A part with its length, so that parts cannot be shifted into one another.
fn part(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
