//! Cost of a process on the host.

/// Processor time in ms, proportional and resident set size in bytes of a process.
pub(crate) fn process_usage(pid: i32) -> std::io::Result<(u64, u64, u64)> {
    /// Kernel ticks per second that `/proc/<pid>/stat` counts in on every Linux architecture we run on (USER_HZ).
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        // The name in brackets may itself hold blanks and brackets.
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // utime and stime are fields 14 and 15 (proc(5)); two are before the bracket.
    let cpu_ms = (ticks(11) + ticks(12)) * 1_000 / TICKS_PER_SECOND;
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |name: &str| {
        let line = smaps.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    Ok((cpu_ms, kib("Pss:"), kib("Rss:")))
}
