//! The host on which a report was measured.

use std::fmt;
use std::fs;

use serde::Serialize;

use crate::Scene;
use crate::error::BenchError;

/// Description of the host.
#[derive(Debug, Serialize)]
pub struct HostStamp {
    /// Model of the processor.
    pub cpu: String,
    /// Number of processors.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub host_kernel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Accelerator of QEMU.
    pub accelerator: String,
    /// Load averages over 1, 5 and 15 minutes.
    pub load_average: String,
    /// Profile of this build.
    pub build: &'static str,
    /// Version of this build.
    pub version: &'static str,
}

pub(crate) async fn stamp(scene: &Scene) -> Result<HostStamp, BenchError> {
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
