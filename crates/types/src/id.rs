//! Identifiers: 20 lower-case base-32 characters, ordered by time of creation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::shown::shown;

/// Length of every id in characters.
pub const ID_LENGTH: usize = 20;

/// "base32hex" of RFC 4648 in lower case: its order is the order of the values, so ids sort by time.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: ids are 20 characters of a-z and 0-9")]
pub struct IdError(pub String);

fn encode(time_ms: u64, random: u64) -> String {
    // 48 bits of milliseconds and 52 random bits are 100 bits: 20 characters of 5 bits.
    let value = (u128::from(time_ms & 0xffff_ffff_ffff) << 52) | u128::from(random & 0xf_ffff_ffff_ffff);
    (0..ID_LENGTH)
        .map(|index| {
            let shift = 5 * (ID_LENGTH - 1 - index);
            char::from(ALPHABET[usize::from(((value >> shift) & 31) as u8)])
        })
        .collect()
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[a-z0-9]{20}$"))]
        pub struct $name(String);

        impl $name {
            /// Builds an id from Unix time in milliseconds (48 bits are used) and 52 random bits.
            /// Two ids made in the same millisecond differ by their random bits; later ids sort after earlier ones.
            #[must_use]
            pub fn from_parts(time_ms: u64, random: u64) -> Self {
                Self(encode(time_ms, random))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The id as a number below 36^20 (103.4 bits); different ids give different numbers.
            #[must_use]
            pub fn as_u128(&self) -> u128 {
                self.0.bytes().fold(0, |value, byte| {
                    let digit = if byte.is_ascii_digit() { byte - b'0' } else { byte - b'a' + 10 };
                    value * 36 + u128::from(digit)
                })
            }

            /// The Unix time in milliseconds it was made with. An id that was not made here gives any number.
            #[must_use]
            pub fn time_ms(&self) -> u64 {
                // The first ten characters are 50 bits, of which 48 are the time.
                let digit = |byte| ALPHABET.iter().position(|known| *known == byte).unwrap_or(0) as u64;
                self.0.bytes().take(10).fold(0, |value, byte| value << 5 | digit(byte)) >> 2
            }

            /// Whether `text` has the form of an id.
            #[must_use]
            pub fn is_valid(text: &str) -> bool {
                is_id(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_id(text) { Ok(Self(text.to_owned())) } else { Err(IdError(shown(text))) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                if is_id(&text) { Ok(Self(text)) } else { Err(IdError(shown(&text))) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type! {
    /// Identifies one VM for ever; never used again after the VM is gone.
    VmId
}
id_type! {
    /// Identifies one snapshot for ever.
    SnapshotId
}
id_type! {
    /// Identifies one named volume for ever.
    VolumeId
}
id_type! {
    /// Identifies one process started through the guest agent. Unlike a process number of the guest's kernel it is
    /// never used twice.
    ProcessId
}

impl ProcessId {
    /// The id of a start command by its place, from 0 on.
    #[must_use]
    pub fn of_start_command(place: usize) -> Self {
        Self(format!("{START_COMMAND}{:08}", place % 100_000_000))
    }

    /// Whether it is one of a template's start commands, whose ids are known in advance.
    #[must_use]
    pub fn is_start_command(&self) -> bool {
        self.as_str().starts_with(START_COMMAND)
    }
}

/// What the ids of start commands begin with; eight digits follow (the agent makes them).
const START_COMMAND: &str = "startcommand";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_round_trip_and_sort_by_time(early in 0u64..1 << 47, gap in 1u64..1 << 46, a in any::<u64>(), b in any::<u64>()) {
            let first = VmId::from_parts(early, a);
            let second = VmId::from_parts(early + gap, b);
            prop_assert!(first < second);
            prop_assert_eq!((first.time_ms(), second.time_ms()), (early, early + gap));
            prop_assert_eq!(first.as_str().parse::<VmId>().unwrap(), first.clone());
            prop_assert_eq!(first.as_str().len(), ID_LENGTH);
        }
    }

    #[test]
    fn refuses_what_is_not_an_id() {
        for text in ["", "abc", "ABCDEFGHIJKLMNOPQRST", "0123456789-123456789", "0123456789012345678é"] {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
    }
}
