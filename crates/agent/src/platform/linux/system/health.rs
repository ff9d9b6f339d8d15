//! Use of processor, memory and disk.

use std::fs;
use std::sync::{Mutex, PoisonError};

use super::info;
use crate::core::platform::Usage;

/// Counters of the processor at the last measurement.
#[derive(Debug, Default)]
pub(in crate::platform::linux) struct Sampler {
    last: Mutex<(u64, u64)>,
}

impl Sampler {
    /// Use of the processor since the last call, 0 to 100.
    fn cpu_percent(&self) -> f64 {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let total: u64 = fields.iter().sum();
        // Idle and waiting for disks.
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (before_total, before_idle) = std::mem::replace(&mut *last, (total, idle));
        let passed = total.saturating_sub(before_total);
        100.0 - percent(idle.saturating_sub(before_idle), passed, 100.0)
    }
}

/// Share of `part` in `whole` in percent; `otherwise` if there is no whole.
#[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
fn percent(part: u64, whole: u64, otherwise: f64) -> f64 {
    if whole == 0 { otherwise } else { (part as f64 / whole as f64 * 100.0).clamp(0.0, 100.0) }
}

/// Measures the use of processor, memory and disk.
pub(in crate::platform::linux) fn usage(sampler: &Sampler) -> Usage {
    let memory = info::memory();
    let disk = info::disk();
    Usage {
        cpu_percent: sampler.cpu_percent(),
        memory_percent: percent(memory.total.saturating_sub(memory.available), memory.total, 0.0),
        disk_percent: percent(disk.total.saturating_sub(disk.available), disk.total, 0.0),
    }
}
