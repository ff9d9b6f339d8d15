//! Byte strings in the query of a URL.
//!
//! Guest paths are bytes, not text. In a query every byte outside the unreserved set of RFC 3986 is
//! percent-encoded, and decoding gives the bytes back, whether they are UTF-8 or not.

use std::fmt::Write as _;

/// Why a query cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A `%` without two hexadecimal digits behind it.
    #[error("the query has a `%` without two hexadecimal digits: percent-encode every byte of a path")]
    Escape,
    /// A parameter is given twice.
    #[error("the query parameter `{0}` is given twice")]
    Twice(String),
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
        wanted: &'static str,
    },
}

/// Percent-encodes bytes for use as a value in a query.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
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

/// The decoded parameters of one query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads the raw query of a URL (what comes after `?`).
    ///
    /// # Errors
    /// [`QueryError::Escape`] if an escape is broken.
    pub fn parse(raw: &str) -> Result<Self, QueryError> {
        let mut parameters = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8_lossy(&decode(name)?).into_owned();
            parameters.push((name, decode(value)?));
        }
        Ok(Self(parameters))
    }

    /// All values of a parameter, in order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_slice())
    }

    /// The bytes of a parameter that may be absent.
    ///
    /// # Errors
    /// [`QueryError::Twice`] if it is given more than once.
    pub fn bytes(&self, name: &'static str) -> Result<Option<&[u8]>, QueryError> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(QueryError::Twice(name.to_owned())) } else { Ok(first) }
    }

    /// The bytes of a parameter that has to be there.
    ///
    /// # Errors
    /// [`QueryError::Missing`] if it is not.
    pub fn required(&self, name: &'static str) -> Result<&[u8], QueryError> {
        self.bytes(name)?.ok_or(QueryError::Missing(name))
    }

    /// A parameter read by its `FromStr`; `wanted` says in words what it should be.
    ///
    /// # Errors
    /// [`QueryError::Value`] if it is something else.
    pub fn value<T: std::str::FromStr>(
        &self,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, QueryError> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let parsed = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        let shown = || String::from_utf8_lossy(bytes).chars().take(80).collect();
        parsed.map(Some).ok_or_else(|| QueryError::Value { name, value: shown(), wanted })
    }

    /// A yes-or-no parameter: `true`, `1` or nothing after the name means yes.
    ///
    /// # Errors
    /// [`QueryError::Value`] if it is neither yes nor no.
    pub fn flag(&self, name: &'static str) -> Result<bool, QueryError> {
        match self.bytes(name)? {
            None | Some(b"false" | b"0") => Ok(false),
            Some(b"" | b"true" | b"1") => Ok(true),
            Some(other) => Err(QueryError::Value {
                name,
                value: String::from_utf8_lossy(other).chars().take(80).collect(),
                wanted: "true or false",
            }),
        }
    }

    /// An octal number, such as permission bits.
    ///
    /// # Errors
    /// [`QueryError::Value`] if it is not octal or above 0o7777.
    pub fn mode(&self, name: &'static str) -> Result<Option<u32>, QueryError> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let text = String::from_utf8_lossy(bytes);
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
            _ => Err(QueryError::Value {
                name,
                value: text.chars().take(80).collect(),
                wanted: "an octal number up to 7777",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_it_should_and_refuses_the_rest() {
        let query = Query::parse("path=/a%FFb%20c&recursive&mode=0755&label=a%3Db&label=c%3Dd").unwrap();
        assert_eq!(query.required("path").unwrap(), b"/a\xffb c");
        assert!(query.flag("recursive").unwrap());
        assert!(!query.flag("force").unwrap());
        assert_eq!(query.mode("mode").unwrap(), Some(0o755));
        assert_eq!(query.all("label").count(), 2);
        assert_eq!(query.bytes("label"), Err(QueryError::Twice("label".into())));
        assert_eq!(query.required("to"), Err(QueryError::Missing("to")));
        assert_eq!(Query::parse("path=%f"), Err(QueryError::Escape));
        assert!(Query::parse("mode=99999").unwrap().mode("mode").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            let raw = format!("path={}", encode(&bytes));
            let query = Query::parse(&raw).unwrap();
            prop_assert_eq!(query.required("path").unwrap(), &bytes[..]);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = Query::parse(&text);
        }
    }
}
