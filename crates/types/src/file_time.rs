//! Times of files.

use std::fmt;
use std::str::FromStr;

/// When the content of a file was last changed: seconds since 1970-01-01T00:00:00Z, and nanoseconds after that second.
///
/// As text a decimal number of seconds (`981173106.5`), as the `mtime` of pax archives (POSIX.1-2001); before 1970 it is
/// negative, and its fraction then counts away from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileTime {
    seconds: i64,
    nanoseconds: u32,
}

/// A text that is no time of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a decimal number of seconds since 1970")]
pub struct FileTimeError(String);

impl FileTime {
    /// `nanoseconds` counts from `seconds` on, also before 1970; 999,999,999 at most, what is more is cut to that.
    #[must_use]
    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self { seconds, nanoseconds: if nanoseconds > 999_999_999 { 999_999_999 } else { nanoseconds } }
    }

    /// Whole seconds, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after that second, 0 to 999,999,999.
    #[must_use]
    pub const fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

impl fmt::Display for FileTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanoseconds);
        let sign = if total < 0 { "-" } else { "" };
        let (whole, part) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
        if part == 0 {
            write!(formatter, "{sign}{whole}")
        } else {
            write!(formatter, "{sign}{whole}.{part:09}")
        }
    }
}

impl FromStr for FileTime {
    type Err = FileTimeError;

    /// Digits after the ninth of the fraction are cut off.
    fn from_str(text: &str) -> Result<Self, FileTimeError> {
        let failed = || FileTimeError(text.chars().take(40).collect());
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(part) {
            return Err(failed());
        }
        let part: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
        let whole: i64 = whole.parse().map_err(|_| failed())?;
        let part: i64 = part.parse().map_err(|_| failed())?;
        let total = sign * (i128::from(whole) * 1_000_000_000 + i128::from(part));
        let seconds = i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| failed())?;
        let nanoseconds = u32::try_from(total.rem_euclid(1_000_000_000)).map_err(|_| failed())?;
        Ok(Self { seconds, nanoseconds })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seconds_are_rounded_down_on_both_sides_of_1970() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("981173106.5", 981_173_106, 500_000_000),
            ("-0.5", -1, 500_000_000),
            ("-1", -1, 0),
            ("-1.000000001", -2, 999_999_999),
            ("1.0000000019", 1, 1),
        ] {
            assert_eq!(text.parse(), Ok(FileTime::new(seconds, nanoseconds)), "{text}");
        }
        for bad in ["", "-", ".5", "1.", "1,5", "+1", "1e3", "--1", "99999999999999999999"] {
            assert!(bad.parse::<FileTime>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn times_come_back_from_text(seconds in i64::MIN + 1.., nanoseconds in 0u32..1_000_000_000) {
            let time = FileTime::new(seconds, nanoseconds);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
