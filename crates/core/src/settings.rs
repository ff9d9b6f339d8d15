//! Settings of an operator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use microvm_types::template::Template;
use serde::{Deserialize, Serialize};

use crate::template_source::TemplateSource;

/// Upper bounds of one VM and of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLimits {
    /// Processors of one VM.
    pub max_vcpus: u32,
    /// Memory of one VM in MiB.
    pub max_memory_mib: u32,
    /// Scratch disk of one VM in MiB.
    pub max_disk_mib: u32,
    /// VMs at once.
    pub max_vms: usize,
    /// Memory of all VMs together in MiB, whether they run or not; `None`: only what the host has free counts.
    pub total_memory_mib: Option<u64>,
    /// Scratch disks of all VMs together in MiB, as large as they may grow; `None`: only what they take counts.
    pub total_disk_mib: Option<u64>,
}

impl Default for HostLimits {
    /// 8 processors, 8 GiB of memory and 100 GiB of disk per VM; 1,000 VMs. (FEATURES row A38; the number of VMs is
    /// limited by memory long before.)
    fn default() -> Self {
        Self {
            max_vcpus: 8,
            max_memory_mib: 8_192,
            max_disk_mib: 102_400,
            max_vms: 1_000,
            total_memory_mib: None,
            total_disk_mib: None,
        }
    }
}

/// Settings of the service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Upper bounds; wiring lowers them to what the host has.
    pub limits: HostLimits,
    /// Where templates come from that may change while the server runs; `None`: `templates` alone is used.
    pub template_source: Option<Arc<dyn TemplateSource>>,
    /// Templates known by name where there is no `template_source`.
    pub templates: BTreeMap<String, Template>,
    /// Name of the template that requests get which name none.
    pub default_template: String,
    /// True: VMs are forked from the golden snapshot of their template instead of booting.
    pub golden: bool,
    /// Most snapshots of one VM without a name of their own; the oldest of them goes.
    pub snapshots_per_vm: usize,
    /// Age at which snapshots without a name of their own go by themselves; `None`: at none.
    pub unnamed_snapshot_age: Option<Duration>,
    /// Most named snapshots of one VM; `None`: whoever names one keeps it.
    pub named_snapshots_per_vm: Option<usize>,
    /// True: a VM has to come up from each snapshot that a user takes before it counts as taken. It costs what a fork
    /// costs; golden snapshots are proved in any case.
    pub prove_snapshots: bool,
    /// VMMs that wait for the next children of a VM that is forked; 0: none.
    pub waiting_vmms: usize,
    /// Bytes of free disk below which VMs that grow stand still until there is more; of a small disk at most its fiftieth
    /// part is kept. 0: none, so that only a full disk stops VMs.
    pub disk_reserve: u64,
    /// Longest time for a guest to power off by itself before it is killed.
    pub stop_grace: Duration,
    /// Longest time for a VMM to end.
    pub kill_deadline: Duration,
    /// Longest time for which an export waits for its turn.
    pub export_patience: Duration,
    /// Longest time for the look at a disk that is imported, by the VM that has it: a hostile file system may keep the guest's kernel
    /// at it for ever.
    pub disk_patience: Duration,
    /// Longest time for a guest to begin to give up memory that it does not have from a boot on. After it, its kernel counts as one
    /// without a driver for a balloon.
    pub balloon_patience: Duration,
    /// Longest time for an adopted guest to answer after a restart of the server.
    pub adopt_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: HostLimits::default(),
            template_source: None,
            templates: BTreeMap::new(),
            default_template: "linux-default".to_owned(),
            golden: true,
            // FEATURES row A33.
            snapshots_per_vm: 10,
            unnamed_snapshot_age: Some(Duration::from_secs(30 * 24 * 3_600)),
            named_snapshots_per_vm: None,
            prove_snapshots: false,
            waiting_vmms: 1,
            disk_reserve: 256 << 20,
            stop_grace: Duration::from_secs(10),
            kill_deadline: Duration::from_secs(10),
            export_patience: Duration::from_secs(10),
            disk_patience: Duration::from_mins(2),
            balloon_patience: Duration::from_secs(15),
            adopt_deadline: Duration::from_secs(30),
        }
    }
}
