//! Dockerfiles: a file and its context in, the request for an image out.
//!
//! One stage, from an image of the store. What cannot be done is refused by its name and line, never left out: an image that
//! lacks something would be found out much later.
//!
//! ```text
//! source (text, context, .dockerignore) ─▶ read (parser, lines) ─▶ build (state, steps) ─▶ AddImage
//!                                             words (splitting, variables) ┘
//! ```

mod build;
mod copy;
mod read;
mod source;
mod variables;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use microvm_api::image::{AddImage, Image, ImageSource};

pub(crate) use self::source::{Source, is_dockerfile};
use crate::error::CliError;

/// What is wrong with a Dockerfile, and in which line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    line: usize,
    why: String,
    /// Whether it stands for itself, whatever the base of the image is.
    always: bool,
}

impl Refusal {
    fn new(line: usize, why: impl Into<String>) -> Self {
        Self { line, why: why.into(), always: false }
    }

    /// The refusal of something that is known and not supported.
    fn unsupported(line: usize, what: &str, instead: &str) -> Self {
        Self { always: true, ..Self::new(line, format!("{what} is not supported: {instead}")) }
    }
}

/// The image that a Dockerfile builds on, and the line that names it.
///
/// # Errors
/// Everything that is not supported, each with its line: nobody fetches a base for a file that cannot be built.
pub(crate) fn base(
    source: &Source,
    arguments: &BTreeMap<String, String>,
) -> Result<(String, usize), CliError> {
    let base = build::base(&source.text, arguments).map_err(|refusal| source.refused(&refusal))?;
    let refusals = build::unsupported(source, arguments);
    if refusals.is_empty() { Ok(base) } else { Err(source.all_refused(&refusals)) }
}

/// The request for an image called `name`, built on `base`, and what to tell about it.
///
/// # Errors
/// A refusal with its line.
pub(crate) fn request(
    source: &Source,
    name: String,
    base: &Image,
    arguments: &BTreeMap<String, String>,
) -> Result<(AddImage, Vec<String>), CliError> {
    let built = build::build(source, &base.config, arguments).map_err(|refusal| source.refused(&refusal))?;
    let request = AddImage {
        name,
        // By digest: the name may be moved meanwhile, and its variables are part of the steps.
        source: ImageSource::Image { reference: base.digest.clone() },
        packages: Vec::new(),
        pip: Vec::new(),
        npm: Vec::new(),
        files: Vec::new(),
        commands: Vec::new(),
        steps: built.steps,
        config: built.config,
        no_cache: false,
    };
    Ok((request, built.notes))
}
