//! Variables of this program's own environment.

use std::env;
use std::fmt;

/// The text of a variable; `None` if it is not set.
///
/// # Errors
/// If its value is not UTF-8: a setting that is taken as unset would be lost without a word.
pub(crate) fn read(name: &str) -> Result<Option<String>, NotText> {
    match env::var(name) {
        Ok(text) => Ok(Some(text)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(NotText { name: name.to_owned() }),
    }
}

/// The same; an empty one is as one that is not set.
///
/// # Errors
/// As of [`read`].
pub(crate) fn filled(name: &str) -> Result<Option<String>, NotText> {
    Ok(read(name)?.filter(|text| !text.is_empty()))
}

/// A variable whose value is no text.
#[derive(Debug)]
pub(crate) struct NotText {
    name: String,
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the value of the environment variable {} is not UTF-8: set it to text, or unset it",
            self.name
        )
    }
}

impl std::error::Error for NotText {}
