//! Names people give to VMs, images, kernels and templates.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::VmId;
use crate::shown::shown;

/// Longest name in characters that is accepted from a client.
pub const NAME_MAX: usize = 64;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("the name is empty: give 1 to {NAME_MAX} letters, digits, `-` or `_`")]
    Empty,
    /// More than [`NAME_MAX`] characters.
    #[error("the name has {0} characters: at most {NAME_MAX} are allowed")]
    TooLong(usize),
    /// A character outside `[a-zA-Z0-9_-]`.
    #[error(
        "the name `{name}` has the character {character:?}: only letters, digits, `-` and `_` are allowed"
    )]
    Character {
        /// The refused name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

/// A name that matches `^[a-zA-Z0-9_-]{1,64}$`: what existing clients send. Names that we make ourselves are
/// stricter (`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`, usable as a host name), see [`Name::is_host_name`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[a-zA-Z0-9_-]{1,64}$"))]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name can stand as a host name label as it is.
    #[must_use]
    pub fn is_host_name(&self) -> bool {
        let bytes = self.0.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        bytes.len() <= 32
            && bytes.first().is_some_and(inner)
            && bytes.last().is_some_and(inner)
            && bytes.iter().all(|byte| inner(byte) || *byte == b'-')
    }

    /// The host name a guest of this name gets: the name itself if it can be one, else lower case with every other
    /// character made a dash and dashes at the ends removed (`vm` if nothing is left).
    #[must_use]
    pub fn to_host_name(&self) -> String {
        let lower: String =
            self.0.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).take(63).collect();
        let trimmed = lower.trim_matches('-');
        if trimmed.is_empty() { "vm".to_owned() } else { trimmed.to_owned() }
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(character) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '_'))
        {
            return Err(NameError::Character { name: shown(&text), character });
        }
        if text.len() > NAME_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        Ok(Self(text))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl From<&VmId> for Name {
    fn from(id: &VmId) -> Self {
        Self(id.as_str().to_owned())
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Name({})", self.0)
    }
}

/// A VM as a caller names it: its id, its name, or the first characters of its id. An id is tried first, then a name, then
/// ids that begin so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmRef(Name);

impl VmRef {
    /// The text as the caller gave it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The id, if the text has the form of one.
    #[must_use]
    pub fn as_id(&self) -> Option<VmId> {
        self.as_str().parse().ok()
    }

    /// The text as a name.
    #[must_use]
    pub const fn as_name(&self) -> &Name {
        &self.0
    }
}

impl FromStr for VmRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse().map(Self)
    }
}

impl From<VmId> for VmRef {
    fn from(id: VmId) -> Self {
        Self(Name::from(&id))
    }
}

impl From<Name> for VmRef {
    fn from(name: Name) -> Self {
        Self(name)
    }
}

impl fmt::Display for VmRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tells_why_a_name_is_refused() {
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("a".repeat(65).parse::<Name>(), Err(NameError::TooLong(65)));
        for bad in ["a b", "../x", "a/b", "a\n", "é", "a.b", "a;b"] {
            assert!(matches!(bad.parse::<Name>(), Err(NameError::Character { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn host_names_are_host_names(text in "[a-zA-Z0-9_-]{1,64}") {
            let name: Name = text.parse().unwrap();
            let host = name.to_host_name();
            prop_assert!(!host.is_empty() && host.len() <= 63);
            prop_assert!(host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!host.starts_with('-') && !host.ends_with('-'));
            if name.is_host_name() { prop_assert_eq!(host, text); }
        }
    }
}
