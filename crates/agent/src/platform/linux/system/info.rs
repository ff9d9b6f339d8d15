//! Figures about the guest.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use microvm_protocol::messages::System;

/// A capacity in bytes.
pub(super) struct Capacity {
    pub(super) total: u64,
    pub(super) available: u64,
}

/// Memory of the guest.
pub(super) fn memory() -> Capacity {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Capacity {
        total: field("MemTotal").unwrap_or(0) * 1024,
        available: field("MemAvailable").unwrap_or(0) * 1024,
    }
}

/// The root file system.
pub(super) fn disk() -> Capacity {
    rustix::fs::statvfs("/").map_or(Capacity { total: 0, available: 0 }, |disk| Capacity {
        total: disk.f_blocks * disk.f_frsize,
        // Not `f_bfree`, which counts blocks that are kept for root.
        available: disk.f_bavail * disk.f_frsize,
    })
}

/// Everything about the guest as a system.
pub(in crate::platform::linux) fn system_info() -> System {
    let names = rustix::system::uname();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let (memory, disk) = (memory(), disk());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    System {
        operating_system: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
        kernel_release: names.release().to_string_lossy().into_owned(),
        host_name: names.nodename().to_string_lossy().into_owned(),
        architecture: names.machine().to_string_lossy().into_owned(),
        vcpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_total: memory.total,
        memory_available: memory.available,
        disk_total: disk.total,
        disk_available: disk.available,
        uptime_seconds: uptime.unsigned_abs(),
        load_average: load.split_ascii_whitespace().take(3).filter_map(|field| field.parse().ok()).collect(),
        wall_clock_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
    }
}
