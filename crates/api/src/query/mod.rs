//! Queries of URLs: one struct each, read by the server and written by the client.
//!
//! The fields of the struct are the parameters. Lists are parameters that are given several times; a flag is `true`, `1` or
//! nothing after its name, or `false` or `0`. Guest paths are bytes, not text: in a query every byte outside the unreserved
//! set of RFC 3986 is percent-encoded, and decoding gives the bytes back, whether they are UTF-8 or not. A parameter that
//! the struct does not have is refused.

mod read;
mod types;
mod write;

use std::fmt::Write as _;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::meant::nearest;

pub use types::{
    FilterError, FilterPair, FilterState, GuestPath, GuestPathError, Mode, ModifiedTime, Owner, RawBytes,
};

/// Why a query cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A `%` without two hexadecimal digits behind it.
    #[error("the query has a `%` without two hexadecimal digits: percent-encode every byte of a path")]
    Escape,
    /// A parameter is given twice.
    #[error("the query parameter `{0}` is given twice")]
    Twice(&'static str),
    /// A parameter that the operation does not have.
    #[error("there is no query parameter `{name}` here: {}", known(.nearest.as_deref(), .all))]
    Unknown {
        /// Its name, shortened.
        name: String,
        /// The parameter that was probably meant.
        nearest: Option<String>,
        /// All parameters of the operation.
        all: Vec<&'static str>,
    },
    /// A parameter that has to be there is not.
    #[error("the query parameter `{0}` is missing")]
    Missing(&'static str),
    /// A parameter that has to be text or a number is something else.
    #[error("the query parameter `{name}` is `{value}`: {wanted} is needed")]
    Value {
        /// Which parameter.
        name: &'static str,
        /// What it is, shortened.
        value: String,
        /// What it should be.
        wanted: String,
    },
    /// The struct has a field that no parameter can carry: a fault of the program, found by the test that walks all rows.
    #[error("the query cannot carry a field: {0}")]
    Shape(String),
}

/// Reads the raw query of a URL (what comes after `?`).
///
/// # Errors
/// [`QueryError`] if an escape is broken or a parameter is missing, given twice or something else than it should be.
pub fn read<T: DeserializeOwned>(raw: &str) -> Result<T, QueryError> {
    T::deserialize(read::Query(raw)).map_err(QueryError::from)
}

/// Writes a query, with the `?` before it; nothing if no parameter is given.
///
/// # Errors
/// [`QueryError::Shape`] if `T` is not a struct of parameters.
pub fn write<T: Serialize>(parameters: &T) -> Result<String, QueryError> {
    let mut text = String::new();
    parameters.serialize(write::Query(&mut text)).map_err(QueryError::from)?;
    Ok(text)
}

/// Percent-encodes bytes for use as a value in a query.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    encode_into(bytes, b"-._~/", &mut text);
    text
}

/// Percent-encodes one segment of a path: a slash in it too.
#[must_use]
pub fn encode_segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    encode_into(text.as_bytes(), b"-._~", &mut encoded);
    encoded
}

fn encode_into(bytes: &[u8], plain: &[u8], text: &mut String) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

fn decode(text: &str) -> Result<Vec<u8>, QueryError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || {
                    let digit = rest.next().and_then(|digit| char::from(digit).to_digit(16));
                    digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(QueryError::Escape)
                };
                bytes.push(digit()? << 4 | digit()?);
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    Ok(bytes)
}

fn unknown(name: &[u8], all: &'static [&'static str]) -> QueryError {
    let name = shown(name);
    let nearest = nearest(&name, all.iter().copied()).map(str::to_owned);
    QueryError::Unknown { name, nearest, all: all.to_vec() }
}

/// The end of a refusal: which parameters there are.
fn known(nearest: Option<&str>, all: &[&str]) -> String {
    let all: Vec<String> = all.iter().map(|name| format!("`{name}`")).collect();
    match (nearest, all.as_slice()) {
        (_, []) => "it takes none".to_owned(),
        (Some(nearest), _) => format!("`{nearest}` was probably meant"),
        (None, all) => format!("it takes {}", all.join(", ")),
    }
}

/// Bytes of a caller as they are shown in errors.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(80).collect()
}

#[cfg(test)]
mod tests;
