//! How much memory the host has left.

/// MiB that new processes can take without anything being swapped out (`MemAvailable` of proc(5)); without bound if the
/// host does not say.
pub(crate) fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib >> 10)
}
