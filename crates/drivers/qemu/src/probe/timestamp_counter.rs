//! Frequency of the host's time stamp counter.
//!
//! TCG hands the host's counter to the guest. A guest kernel that must find out its frequency by itself hangs in
//! calibration, so it is told (`tsc_early_khz=`); if it is told wrong, its clock runs wrong by the same factor.

use std::time::{Duration, Instant};

/// Length of one measurement. Reading both clocks takes below 100 ns, so that 20 ms give 10 parts per million.
const SPAN: Duration = Duration::from_millis(20);

/// Frequency in kHz, measured against the monotonic clock: the median of three spans, 60 ms in all. The spans are
/// slept through, not spun.
#[must_use]
pub(crate) fn measure_khz() -> u64 {
    let mut found = [0; 3];
    for result in &mut found {
        let (start, from) = sample();
        std::thread::sleep(SPAN);
        let (end, to) = sample();
        let nanoseconds = u64::try_from(end.duration_since(start).as_nanos()).unwrap_or(u64::MAX);
        *result =
            u64::try_from(u128::from(to - from) * 1_000_000 / u128::from(nanoseconds.max(1))).unwrap_or(0);
    }
    // The median: a span in which the host was busy elsewhere falls out.
    found.sort_unstable();
    found[1]
}

/// Both clocks at nearly the same moment: the closest pair of several, so that an interruption between the two reads
/// does not count.
fn sample() -> (Instant, u64) {
    let mut best = None;
    for _ in 0..8 {
        let before = counter();
        let now = Instant::now();
        let after = counter();
        let gap = after.wrapping_sub(before);
        if best.is_none_or(|(smallest, _, _)| gap < smallest) {
            best = Some((gap, now, before + gap / 2));
        }
    }
    best.map_or_else(|| (Instant::now(), counter()), |(_, now, counter)| (now, counter))
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; Linux lets user programs use it.
    // Needed: the standard library has the instruction as an unsafe function only.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn two_measurements_agree_to_one_in_ten_thousand() {
        let (first, second) = (measure_khz(), measure_khz());
        assert!(first > 100_000, "{first}");
        assert!(first.abs_diff(second) * 10_000 < first, "{first} {second}");
    }
}
