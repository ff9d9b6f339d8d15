//! Pairs of keys and values on the command line.

use crate::variables;

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}

/// `KEY=VALUE`, or `KEY` for its value in our own environment.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let name = text.split('=').next().unwrap_or_default();
    // A shell's `export NAME=VALUE` would become a variable that no program looks for.
    if name.contains(char::is_whitespace) {
        return Err(format!("`{name}` is no name of a variable: it has a space in it"));
    }
    if text.contains('=') {
        return pair(text);
    }
    match variables::read(text) {
        Ok(Some(value)) => Ok((text.to_owned(), value)),
        Ok(None) => Err(format!("`{text}` is not set here: write {text}=VALUE")),
        Err(error) => Err(error.to_string()),
    }
}
