//! A fake guest as it lies in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use microvm_ports::guest::Identity;
use microvm_types::ProcessId;
use microvm_types::guest::NotStarted;
use serde::{Deserialize, Serialize};

use crate::guest::disks::Disk;
use crate::guest::process::{Process, SavedProcess};
use crate::guest::system::{GuestSystem, Inner};

/// Everything but files, which are on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedGuest {
    host_name: String,
    machine_id: String,
    environment: Vec<(String, String)>,
    user: String,
    working_directory: String,
    start_commands_done: bool,
    not_started: Option<NotStarted>,
    epoch: u64,
    random: ([u8; 32], u64),
    uptime_ms: u64,
    next_pid: u32,
    next_id: u64,
    processes: Vec<SavedProcess>,
}

impl GuestSystem {
    /// The guest as it is now.
    pub(crate) fn save(&self) -> SavedGuest {
        let (next_pid, next_id) = self.next_numbers();
        let inner = self.inner();
        let identity = inner.identity.clone();
        SavedGuest {
            host_name: identity.host_name,
            machine_id: identity.machine_id,
            environment: identity.environment,
            user: identity.user,
            working_directory: identity.working_directory,
            start_commands_done: inner.start_commands_done,
            not_started: inner.not_started.clone(),
            epoch: inner.epoch,
            random: inner.random,
            uptime_ms: u64::try_from(self.booted.elapsed().as_millis()).unwrap_or(u64::MAX),
            next_pid,
            next_id,
            processes: inner.processes.values().map(|process| process.save()).collect(),
        }
    }

    /// A guest that continues from `saved` when its machine runs; no channel of the one that was saved leads to it.
    pub(crate) fn restored(saved: SavedGuest, disk: Disk, vcpus: u32, memory_mib: u32) -> Self {
        let restored = saved.processes.into_iter().map(|process| Arc::new(Process::restored(process)));
        let processes: BTreeMap<ProcessId, Arc<Process>> =
            restored.map(|process| (process.id.clone(), process)).collect();
        let inner = Inner {
            identity: Identity {
                host_name: saved.host_name,
                machine_id: saved.machine_id,
                environment: saved.environment,
                user: saved.user,
                working_directory: saved.working_directory,
                ..Identity::default()
            },
            asleep: processes.values().filter(|process| process.exit().is_none()).cloned().collect(),
            processes,
            start_commands_done: saved.start_commands_done,
            not_started: saved.not_started,
            epoch: saved.epoch,
            random: saved.random,
            channel: None,
        };
        let uptime = Duration::from_millis(saved.uptime_ms);
        Self::with(inner, disk, (vcpus, memory_mib), uptime, (saved.next_pid, saved.next_id))
    }
}
