//! Everything that a recipe puts on top of an image of the store: packages, wheels, modules of Node, files.

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::Additions;

use super::builder::Builder;
use super::{context, npm, packages, pip, recipe, words};

/// Finds what is wrong with additions without the network and without the image.
pub(crate) fn check(additions: &Additions, cancel: &Cancel) -> Result<(), StorageError> {
    let Additions { packages, pip, npm, files, placements } = additions;
    packages::check_names(packages)?;
    words::check_pip(pip)?;
    words::check_npm(npm)?;
    recipe::check_files(files)?;
    context::check(placements, cancel)
}

/// Puts the additions in. Returns the commands that have to run in a VM first; while there are any, only packages were put in.
///
/// `cache`: the folder of what was fetched before.
pub(crate) fn add(
    builder: &mut Builder,
    workspace: &Workspace,
    cache: &Utf8Path,
    additions: &Additions,
) -> Result<Vec<String>, StorageError> {
    check(additions, &builder.cancel.clone())?;
    let Additions { packages, pip, npm, files, placements } = additions;
    // Packages first: the Python and the Node that the others need may be among them.
    if !packages.is_empty() {
        if !npm.is_empty() {
            npm::plan(builder, workspace, npm)?;
        }
        let unfinished = packages::add(builder, workspace, cache, packages)?;
        if !unfinished.is_empty() {
            return Ok(unfinished);
        }
    }
    if !pip.is_empty() {
        pip::add(builder, workspace, pip)?;
    }
    if !npm.is_empty() {
        npm::add(builder, workspace, npm)?;
    }
    recipe::add_files(builder, files)?;
    context::add(builder, placements)?;
    Ok(Vec::new())
}

/// Origin of an image with additions, in a few words.
pub(crate) fn describe(base: &str, additions: &Additions) -> String {
    let Additions { packages, pip, npm, files, placements } = additions;
    let mut parts = Vec::new();
    for (kind, words) in [("packages", packages), ("pip", pip), ("npm", npm)] {
        if !words.is_empty() {
            parts.push(format!("{kind} {}", words.join(" ")));
        }
    }
    if !files.is_empty() {
        parts.push(format!("{} files", files.len()));
    }
    if !placements.is_empty() {
        let count = placements.len();
        parts.push(format!("{count} step{}", if count == 1 { "" } else { "s" }));
    }
    if parts.is_empty() { base.to_owned() } else { format!("{base} with {}", parts.join(", ")) }
}
