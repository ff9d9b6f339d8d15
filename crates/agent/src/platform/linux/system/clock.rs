//! The wall clock of the guest.
//!
//! Programs take it for granted that it does not go back. The host's word is a little old when it arrives, and the guest's
//! clock may be ahead of it by a fraction of a millisecond: then it runs slower for a while. It is set back only where the
//! difference is one that no delay explains.
#![allow(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

/// From this difference on the clock is set back, in microseconds.
const SET_BACK_US: i64 = 1_000_000;

/// Correction of a clock that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    /// It jumps by so many microseconds.
    Jump(i64),
    /// It runs slower, by 500 millionths, until it has lost so many microseconds.
    Slow(i64),
}

/// Correction that brings a clock which shows `own` to `told`, both in nanoseconds since 1970.
fn correction(own: i64, told: i64) -> Correction {
    // Rounded down: a jump forward by a whole microsecond is never too far.
    let behind_us = told.saturating_sub(own).div_euclid(1_000);
    if behind_us >= 0 || behind_us <= -SET_BACK_US {
        Correction::Jump(behind_us)
    } else {
        Correction::Slow(-behind_us)
    }
}

/// Brings the wall clock to a time in nanoseconds since 1970; it goes back only if it is ahead by a second or more.
///
/// # Errors
/// The kernel's error if it refuses.
pub(in crate::platform::linux) fn set(told: i64) -> Result<(), String> {
    let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let own = i64::try_from(own.as_nanos()).unwrap_or(i64::MAX);
    // SAFETY: `timex` is plain numbers, for which all zeros is a value. Needed: `libc` gives it no constructor.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    match correction(own, told) {
        Correction::Jump(microseconds) => {
            // Relative to what the clock shows then, not to what it showed above: so it cannot go back by the time between.
            change.modes = libc::ADJ_SETOFFSET;
            change.time.tv_sec = microseconds.div_euclid(1_000_000);
            change.time.tv_usec = microseconds.rem_euclid(1_000_000);
        }
        Correction::Slow(microseconds) => {
            change.modes = libc::ADJ_OFFSET_SINGLESHOT;
            change.offset = -microseconds;
        }
    }
    // SAFETY: `change` is a valid `timex` that this function owns; the kernel reads it and writes the clock's state to it. The
    // safe wrappers know only absolute times.
    if unsafe { libc::adjtimex(&mut change) } < 0 {
        return Err(format!("set the clock: {}", std::io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600_000_000_000;

    #[test]
    fn a_clock_goes_back_only_for_more_than_a_second() {
        // The delay of a branch: 0.3 ms ahead of what the host said.
        assert_eq!(correction(NOW + 300_000, NOW), Correction::Slow(300));
        assert_eq!(correction(NOW + 1, NOW), Correction::Slow(1));
        assert_eq!(correction(NOW + 999_999_000, NOW), Correction::Slow(999_999));
        assert_eq!(correction(NOW + 3_000_000_000, NOW), Correction::Jump(-3_000_000));
    }

    #[test]
    fn a_clock_goes_forward_at_once_and_never_too_far() {
        assert_eq!(correction(NOW, NOW), Correction::Jump(0));
        assert_eq!(correction(NOW, NOW + 1_999), Correction::Jump(1));
        assert_eq!(correction(NOW, NOW + 3_600_000_000_000), Correction::Jump(3_600_000_000));
        assert_eq!(correction(0, i64::MAX), Correction::Jump(i64::MAX / 1_000));
    }
}
