//! Sizes in bytes, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::shown::shown;

/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number followed by a known unit.
    #[error("`{0}` is not a size: write a whole number and a unit, for example 512MiB or 2GiB")]
    Form(String),
    /// More than 2^64 − 1 bytes.
    #[error("`{0}` is larger than any size this program can handle")]
    Range(String),
}

/// A number of bytes. Text forms: `512MiB`, `2GiB`, `64k`, `1g`, `4096` (bytes). Units are powers of 1024
/// whether written `M`, `MB` or `MiB`, as container tools do it, so that `512M` of memory is what people expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many mebibytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count * MIB)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in whole MiB, if it is a whole number of them that fits 32 bits.
    #[must_use]
    pub fn whole_mib(self) -> Option<u32> {
        if self.0.is_multiple_of(MIB) { u32::try_from(self.0 / MIB).ok() } else { None }
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let form = || SizeError::Form(shown(text));
        if digits == 0 {
            return Err(form());
        }
        let shift = match trimmed[digits..].trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(form()),
        };
        let range = || SizeError::Range(shown(text));
        let count: u64 = trimmed[..digits].parse().map_err(|_| range())?;
        count.checked_mul(1 << shift).map(Self).ok_or_else(range)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            let one = 1u64 << shift;
            if self.0 >= one {
                return if self.0.is_multiple_of(one) {
                    write!(formatter, "{}{unit}", self.0 >> shift)
                } else {
                    #[expect(clippy::cast_precision_loss, reason = "shown to one decimal only")]
                    let value = self.0 as f64 / one as f64;
                    write!(formatter, "{value:.1}{unit}")
                };
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("512M", 512 << 20),
            ("1 gb", 1 << 30),
            ("3k", 3072),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
        for text in ["", "-1", "1.5G", "12x", "MiB", "1e9"] {
            assert!(matches!(text.parse::<ByteSize>(), Err(SizeError::Form(_))), "{text}");
        }
        assert!(matches!("99999999999999999999".parse::<ByteSize>(), Err(SizeError::Range(_))));
        assert!(matches!("18446744073709551615k".parse::<ByteSize>(), Err(SizeError::Range(_))));
    }

    proptest! {
        #[test]
        fn whole_units_round_trip(count in 1u64..1024, unit in prop::sample::select(vec!["KiB", "MiB", "GiB", "TiB"])) {
            let size: ByteSize = format!("{count}{unit}").parse().unwrap();
            prop_assert_eq!(size.to_string(), format!("{count}{unit}"));
        }
    }
}
