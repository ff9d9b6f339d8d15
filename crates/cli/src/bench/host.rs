//! On what host a report was measured.

use std::fmt;
use std::fs;

use serde::Serialize;

use crate::bench::Scene;
use crate::error::CliError;

/// Stamp of the host.
#[derive(Debug, Serialize)]
pub(super) struct HostStamp {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_mib: u64,
    pub(super) host_kernel: String,
    pub(super) qemu: String,
    pub(super) accelerator: String,
    pub(super) load_average: String,
    pub(super) build: &'static str,
    pub(super) version: &'static str,
}

pub(super) async fn stamp(scene: &Scene) -> Result<HostStamp, CliError> {
    let report = scene.bare.report().await?;
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
    };
    let memory = field("/proc/meminfo", "MemTotal");
    let kib: u64 = memory.split_ascii_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(HostStamp {
        cpu: field("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        memory_mib: kib >> 10,
        host_kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        qemu: report.version,
        accelerator: report.accelerator.kind.to_string(),
        load_average: fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        version: env!("CARGO_PKG_VERSION"),
    })
}

impl fmt::Display for HostStamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "microvm {} ({} build) on {} × {}, {} MiB, kernel {}, QEMU {} with {}, load {}",
            self.version,
            self.build,
            self.cores,
            self.cpu,
            self.memory_mib,
            self.host_kernel,
            self.qemu,
            self.accelerator,
            self.load_average
        )
    }
}
