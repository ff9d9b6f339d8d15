//! Types of parameters that are more than a number, a text or a flag.

use microvm_types::Phase;
use microvm_types::files::{FileOwner, FileTime};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::shown;

/// Longest path in a guest, in bytes (`PATH_MAX` of Linux).
const PATH_MAX: usize = 4096;

/// Largest permission bits, set-user-id, set-group-id and sticky bit included.
const MODE_MAX: u32 = 0o7777;

/// Longest owner, in bytes.
const OWNER_MAX: usize = 256;

/// Any bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, ToSchema)]
#[schema(value_type = String)]
pub struct RawBytes(pub Vec<u8>);

/// A path as it was asked for; [`Self::absolute`] tells whether it is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, pattern = "^/", max_length = 4096)]
pub struct GuestPath(RawBytes);

/// Bytes that are no path in a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a path in a guest: it must begin with `/`, hold no NUL and at most 4096 bytes")]
pub struct GuestPathError(String);

impl GuestPath {
    /// The bytes: absolute, not empty, without NUL, at most 4096.
    ///
    /// # Errors
    /// [`GuestPathError`] if they are something else.
    pub fn absolute(self) -> Result<Vec<u8>, GuestPathError> {
        let path = self.0.0;
        if path.first() == Some(&b'/') && !path.contains(&0) && path.len() <= PATH_MAX {
            Ok(path)
        } else {
            Err(GuestPathError(String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned()))
        }
    }
}

impl From<&[u8]> for GuestPath {
    fn from(bytes: &[u8]) -> Self {
        Self(RawBytes(bytes.to_owned()))
    }
}

impl Serialize for RawBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for RawBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = RawBytes;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RawBytes, E> {
                Ok(RawBytes(bytes.to_owned()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<RawBytes, E> {
                Ok(RawBytes(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawBytes, E> {
                Ok(RawBytes(text.as_bytes().to_owned()))
            }

            // How JSON has bytes that are no text.
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut bytes: A) -> Result<RawBytes, A::Error> {
                let mut all = Vec::new();
                while let Some(byte) = bytes.next_element()? {
                    all.push(byte);
                }
                Ok(RawBytes(all))
            }
        }
        deserializer.deserialize_byte_buf(Read)
    }
}

/// Permission bits: in text an octal number up to 7777.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^[0-7]{1,4}$")]
pub struct Mode(pub u32);

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer, "an octal number up to 7777", |text| {
            u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= MODE_MAX).map(Self)
        })
    }
}

/// Who gets what is written in a guest: in text `USER[:GROUP]`, or nothing for the user whom commands run as.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, max_length = 256)]
pub struct Owner(pub FileOwner);

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.text())
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer, "USER or USER:GROUP of the guest", |text| {
            (text.len() <= OWNER_MAX && !text.chars().any(char::is_control))
                .then(|| Self(FileOwner::from_text(text)))
        })
    }
}

/// When a file was last changed: in text a decimal number of seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^-?[0-9]+([.][0-9]+)?$")]
pub struct ModifiedTime(pub FileTime);

impl Serialize for ModifiedTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ModifiedTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer, "a decimal number of seconds since 1970", |text| text.parse().ok().map(Self))
    }
}

/// Reads a text; `wanted` says in words what it should be.
fn read_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    wanted: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    struct Text<F>(&'static str, F);
    impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).ok_or_else(|| E::custom(self.0))
        }
    }
    deserializer.deserialize_str(Text(wanted, read))
}

/// A filter that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not `KEY=VALUE`.
    #[error("the filter `{0}` has no `=`: write KEY=VALUE")]
    Pair(String),
    /// Not a state of a VM.
    #[error("`{found}` is not a state: there are {known}")]
    State {
        /// What it is, shortened.
        found: String,
        /// Those there are.
        known: String,
    },
}

/// A key and its value, `KEY=VALUE`, as they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, pattern = "=")]
pub struct FilterPair(RawBytes);

impl FilterPair {
    /// Of a key and its value.
    #[must_use]
    pub fn of(key: &str, value: &str) -> Self {
        Self(RawBytes(format!("{key}={value}").into_bytes()))
    }

    /// The key and its value.
    ///
    /// # Errors
    /// [`FilterError::Pair`] if there is no `=`.
    pub fn pair(&self) -> Result<(String, String), FilterError> {
        let text = String::from_utf8_lossy(&self.0.0);
        let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| FilterError::Pair(shown(&self.0.0)))
    }
}

/// The state of a VM, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Phase)]
pub struct FilterState(RawBytes);

impl FilterState {
    /// The phase of that name.
    ///
    /// # Errors
    /// [`FilterError::State`] if there is none.
    pub fn phase(&self) -> Result<Phase, FilterError> {
        let found = Phase::SHOWN.into_iter().find(|phase| phase.as_str().as_bytes() == self.0.0);
        found.ok_or_else(|| {
            let known: Vec<&str> = Phase::SHOWN.into_iter().map(Phase::as_str).collect();
            FilterError::State { found: shown(&self.0.0), known: known.join(", ") }
        })
    }
}

impl From<Phase> for FilterState {
    fn from(phase: Phase) -> Self {
        Self(RawBytes(phase.as_str().as_bytes().to_owned()))
    }
}
