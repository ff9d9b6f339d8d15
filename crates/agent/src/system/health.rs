//! How the guest is doing.

use std::fs;
use std::sync::{Mutex, PoisonError};

use microvm_protocol::messages::Measured;

use super::info;
use crate::agent::{Agent, StartCommands};

/// Remembers the processor's counters of the last question.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    last: Mutex<(u64, u64)>,
}

impl Sampler {
    /// Processor use since the last call, 0 to 100.
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

/// All figures of health.
pub(crate) fn health(agent: &Agent) -> Measured {
    let memory = info::memory();
    let disk = info::disk();
    Measured {
        cpu_percent: agent.sampler.cpu_percent(),
        memory_percent: percent(memory.total.saturating_sub(memory.available), memory.total, 0.0),
        disk_percent: percent(disk.total.saturating_sub(disk.available), disk.total, 0.0),
        start_commands_done: matches!(agent.start_commands(), StartCommands::Done | StartCommands::NotGiven),
        nanoseconds: Vec::new(),
    }
}
