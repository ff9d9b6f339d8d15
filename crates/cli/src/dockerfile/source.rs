//! A Dockerfile, its context, and what of that is left out.

use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::Refusal;
use crate::error::CliError;
use crate::settings::absolute;

/// Most bytes of a Dockerfile or an ignore file.
const FILE_MAX: u64 = 1 << 20;
/// Mark of byte order that some editors write.
const MARK: char = '\u{feff}';
/// File that says what of a context is left out.
const IGNORE: &str = ".dockerignore";

/// A Dockerfile that was read.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file in messages.
    pub(crate) name: String,
    pub(super) text: String,
    /// Folder whose files it can copy: absolute.
    pub(super) context: String,
    /// Patterns of what is left out.
    pub(super) ignored: Vec<String>,
}

/// True for names of Dockerfiles.
pub(crate) fn is_dockerfile(file: &Utf8Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_ascii_lowercase();
    let kinds = ["dockerfile", "containerfile"];
    kinds.iter().any(|kind| {
        name == *kind
            || name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('.'))
            || name.strip_suffix(kind).is_some_and(|rest| rest.ends_with('.'))
    })
}

impl Source {
    /// Reads a file, with the folder it is in as its context if none is given.
    ///
    /// # Errors
    /// A file that cannot be read; a context that is no folder.
    pub(crate) fn open(file: &Utf8Path, context: Option<&Utf8Path>) -> Result<Self, CliError> {
        let path = absolute(file)?;
        let text = read(&path)?;
        let folder = match context {
            Some(context) => absolute(context)?,
            None => path.parent().map(Utf8Path::to_owned).unwrap_or_default(),
        };
        let metadata = folder.metadata().map_err(|error| CliError::file("examining", &folder, &error))?;
        if !metadata.is_dir() {
            return Err(CliError::invalid(
                "context_invalid",
                format!("the context {folder} is no folder; the name of the image goes to -t"),
            ));
        }
        // One beside the Dockerfile that has its name wins, as with docker.
        let own = Utf8PathBuf::from(format!("{path}{IGNORE}"));
        let ignore = if is_there(&own)? { own } else { folder.join(IGNORE) };
        let ignored = if is_there(&ignore)? { patterns(&read(&ignore)?) } else { Vec::new() };
        Ok(Self { name: file.to_string(), text, context: folder.into_string(), ignored })
    }

    /// A refusal as an error that names file and line.
    pub(super) fn refused(&self, refusal: &Refusal) -> CliError {
        self.all_refused(std::slice::from_ref(refusal))
    }

    /// The same of several, a line each.
    pub(super) fn all_refused(&self, refusals: &[Refusal]) -> CliError {
        let told = |refusal: &Refusal| format!("{}, line {}: {}", self.name, refusal.line, refusal.why);
        let lines: Vec<String> = refusals.iter().map(told).collect();
        CliError::invalid("dockerfile_invalid", lines.join("\n"))
    }
}

/// True if there is a file or a link of this name: one that cannot be read is not taken for none.
fn is_there(path: &Utf8Path) -> Result<bool, CliError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CliError::file("examining", path, &error)),
    }
}

fn read(path: &Utf8Path) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::file("reading", path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    let count = file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if count as u64 > FILE_MAX {
        return Err(CliError::invalid(
            "dockerfile_invalid",
            format!("{path} has more than {FILE_MAX} bytes"),
        ));
    }
    Ok(text.strip_prefix(MARK).map(str::to_owned).unwrap_or(text))
}

/// The patterns of an ignore file: no comments, no empty lines.
pub(super) fn patterns(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
