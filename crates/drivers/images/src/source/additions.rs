//! Everything that a recipe puts on top of an image of the store: packages, wheels, modules of Node, files.

use camino::Utf8Path;
use microvm_durable::error::bad_input;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::Additions;

use super::builder::Builder;
use super::{npm, packages, pip, recipe};

/// Finds what is wrong with additions without the network and without the image.
pub(crate) fn check(additions: &Additions) -> Result<(), StorageError> {
    let Additions { packages, pip, npm, files } = additions;
    packages::check_names(packages)?;
    for (kind, words) in [("pip requirement", pip), ("npm package", npm)] {
        check_words(kind, words)?;
    }
    recipe::check_files(files)
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
    check(additions)?;
    let Additions { packages, pip, npm, files } = additions;
    if !packages.is_empty() {
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
    Ok(Vec::new())
}

/// Where an image with additions came from, in a few words.
pub(crate) fn describe(base: &str, additions: &Additions) -> String {
    let Additions { packages, pip, npm, files } = additions;
    let base = base.get(..19).filter(|_| base.starts_with("sha256:")).unwrap_or(base);
    let mut parts = Vec::new();
    for (kind, words) in [("packages", packages), ("pip", pip), ("npm", npm)] {
        if !words.is_empty() {
            parts.push(format!("{kind} {}", words.join(" ")));
        }
    }
    if !files.is_empty() {
        parts.push(format!("{} files", files.len()));
    }
    if parts.is_empty() { base.to_owned() } else { format!("{base} with {}", parts.join(", ")) }
}

/// Words become arguments of tools: none may be taken for an option, or for a path of the host.
fn check_words(kind: &str, words: &[String]) -> Result<(), StorageError> {
    let fine = |word: &str| {
        !word.is_empty()
            && word.len() <= 512
            && !word.starts_with(['-', '.', '/', '~'])
            && !word.starts_with("file:")
            && !word.chars().any(char::is_control)
    };
    match words.iter().find(|word| !fine(word)) {
        Some(word) => Err(bad_input(
            format!("the {kind} `{}`", word.escape_debug()),
            "write the name of a package, and a version if one is meant; files of the host go to `files`",
        )),
        None => Ok(()),
    }
}
