//! Memory that the host has left.

use std::io;

/// MiB that new processes can take without anything being swapped out (`MemAvailable` of proc(5)).
///
/// # Errors
/// If the host does not say: that it has room is not known then.
pub(crate) fn available_mib() -> io::Result<u64> {
    of_text(&std::fs::read_to_string("/proc/meminfo")?)
}

fn of_text(text: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib >> 10)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_endless() {
        assert_eq!(of_text("MemTotal: 9 kB\nMemAvailable:    20480 kB\n").unwrap(), 20);
        assert!(of_text("").is_err() && of_text("MemAvailable: much").is_err());
        assert!(available_mib().unwrap() > 0);
    }
}
