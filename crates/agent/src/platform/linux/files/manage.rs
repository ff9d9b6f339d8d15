//! Making, renaming, removing.

use std::fs;
use std::io::ErrorKind;

use microvm_protocol::messages::{MakeDirectory, Remove, Rename};

use super::owner::{NewDirectory, Owner, make_all};
use super::path::{absolute, failed};
use crate::core::failure::{AgentError, AgentResult};

/// Makes a directory; what is made gets the owner.
pub(in crate::platform::linux) fn make_directory(
    request: &MakeDirectory,
    owner: Option<Owner>,
) -> AgentResult<()> {
    let path = absolute(&request.path)?;
    if request.parents
        && let Some(parent) = path.parent()
    {
        make_all(parent, owner).map_err(failed("make the parents of", path))?;
    }
    let mode = request.mode & 0o7777;
    match NewDirectory::make(path, mode) {
        Ok(made) => {
            if let Some(owner) = owner {
                made.give(owner).map_err(failed("change the owner of", path))?;
            }
            // After the owner: a change of owner may take set-id bits away (chown(2)).
            made.set_mode(mode).map_err(failed("set the mode of", path))?;
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists && request.parents && path.is_dir() => {}
        Err(error) => return Err(failed("make the directory", path)(error)),
    }
    Ok(())
}

/// Renames within the guest.
pub(in crate::platform::linux) fn rename(request: &Rename) -> AgentResult<()> {
    let (from, to) = (absolute(&request.from)?, absolute(&request.to)?);
    fs::rename(from, to).map_err(failed("rename", from))?;
    Ok(())
}

/// Removes a file, or a directory with all that is in it.
pub(in crate::platform::linux) fn remove(request: &Remove) -> AgentResult<()> {
    let path = absolute(&request.path)?;
    if path.parent().is_none() {
        return Err(AgentError::invalid("the root directory cannot be removed"));
    }
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    match (metadata.is_dir(), request.recursive) {
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
        (false, _) => fs::remove_file(path),
    }
    .map_err(failed("remove", path))?;
    Ok(())
}
