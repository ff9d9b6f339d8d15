//! From what core and the ports say to what the interface says.

use camino::Utf8PathBuf;
use microvm_api::image::Image;
use microvm_api::kernel::Kernel;
use microvm_api::milliseconds::Milliseconds;
use microvm_api::pool::Pool;
use microvm_api::snapshot::{Damage, GoldenVersion, Snapshot};
use microvm_api::system::HypervisorInfo;
use microvm_api::vm::{Event, LastStop, Stats, Vm};
use microvm_core::{VmView, What};
use microvm_ports::hypervisor::Capabilities;
use microvm_ports::storage::{FileSystem, ImageInfo, KernelInfo};
use microvm_types::Phase;
use microvm_types::share::ShareChanges;
use microvm_types::snapshot::SnapshotPurpose;

use crate::app::App;

impl App {
    pub(crate) fn vm(&self, view: VmView) -> Vm {
        let record = view.record;
        let template = record.template;
        let path_style = view.agent.as_ref().map(|agent| agent.path_style).unwrap_or_default();
        let (since, reason) = view.unreachable.map(|lost| (lost.since_ms, lost.reason)).unzip();
        let memory_mib = record.memory_now_mib.unwrap_or(template.machine_memory_mib());
        Vm {
            id: record.id,
            name: record.name,
            state: record.life.phase(),
            // Some values stand under two names, for clients that read the one or the other.
            status: record.life.phase(),
            vcpus: template.vcpus,
            memory_mb: memory_mib,
            memory_mib,
            memory_max_mib: template.machine_memory_mib(),
            boot_time_ms: record.boot_ms,
            disk_mib: template.disk_mib,
            template: template.name.to_string(),
            image: template.image,
            image_digest: record.image_digest,
            kernel: template.kernel,
            network: template.network,
            share_changes: (!template.shares.is_empty()).then_some(ShareChanges::Polling),
            shares: template.shares,
            volumes: template.volumes,
            labels: record.labels,
            metadata: record.metadata,
            limits: record.limits,
            created_at: self.time(record.created_ms),
            updated_at: self.time(record.updated_ms),
            started_at: record.started_ms.map(|started| self.time(started)),
            failure: record.failure,
            last_stop: record.last_stop.map(|stop| LastStop {
                reason: stop.reason,
                at: self.time(stop.at_ms),
                detail: stop.detail,
            }),
            shutdown_at: record.planned_shutdown.map(|planned| self.time(planned.at_ms())),
            reachable: record.life.phase() == Phase::Running && view.agent.is_some(),
            unreachable_since: since.map(|since| self.time(since)),
            unreachable_reason: reason,
            origin: record.origin,
            rest: record.life.rest().cloned(),
            path_style,
        }
    }

    pub(crate) fn stats(&self, stats: microvm_core::VmStats) -> Stats {
        let record = stats.view.record;
        let uptime = record.started_ms.map(|started| self.engine.now_ms().saturating_sub(started));
        Stats {
            state: record.phase(),
            vcpus: record.template.vcpus,
            memory_mib: record.memory_now_mib.unwrap_or(record.template.machine_memory_mib()),
            memory_actual_mib: stats.memory_actual_mib,
            uptime_ms: uptime.filter(|_| record.phase().has_machine()).and_then(|ms| u64::try_from(ms).ok()),
            vm: record.id,
            name: record.name,
            counters: stats.counters,
            guest: stats.guest,
        }
    }

    pub(crate) fn snapshot(&self, snapshot: microvm_core::Snapshot) -> Snapshot {
        let (record, info) = (snapshot.record, snapshot.info);
        Snapshot {
            id: record.id,
            name: record.name,
            vm: record.vm,
            vm_name: record.vm_name,
            description: record.description,
            golden: matches!(record.purpose, SnapshotPurpose::Golden { .. }),
            incremental: info.parent.is_some(),
            parent_snapshot: info.parent,
            template: record.template.name.to_string(),
            image: record.template.image.clone(),
            vcpus: record.template.vcpus,
            memory_mib: record.memory_now_mib.unwrap_or(record.template.machine_memory_mib()),
            memory_max_mib: record.template.machine_memory_mib(),
            memory_bytes: info.memory_bytes,
            size_bytes: info.own_bytes,
            checksum: info.sha256,
            pause_ms: Milliseconds::from_micros(record.pause_us),
            created_at: self.time(record.created_ms),
        }
    }

    pub(crate) fn golden(&self, version: microvm_core::GoldenVersion) -> GoldenVersion {
        GoldenVersion { snapshot: self.snapshot(version.snapshot), current: version.current }
    }

    pub(crate) fn pool(&self, view: microvm_core::PoolView) -> Pool {
        Pool {
            name: view.record.name,
            template: view.record.template.name.to_string(),
            min: view.record.min,
            max: view.record.max,
            max_age_seconds: view.record.max_age_seconds,
            waiting: view.waiting,
            filling: view.filling,
            handed_out: view.handed_out,
            failure: view.failure,
            created_at: self.time(view.record.created_ms),
        }
    }

    /// Event for watchers; `None` for events that only metrics read.
    pub(crate) fn event(&self, event: microvm_core::Event) -> Option<Event> {
        let What::Phase { to, reason, stop, .. } = event.what else { return None };
        Some(Event {
            at: self.time(event.at_ms),
            vm: event.vm,
            name: event.name,
            gone: to == Phase::Deleted,
            // Watchers never see `deleted`, which is no state of a VM that is there: `gone` says it.
            state: if to == Phase::Deleted { Phase::Deleting } else { to },
            detail: reason,
            stop_reason: stop,
        })
    }

    pub(crate) fn image(&self, info: ImageInfo) -> Image {
        Image {
            digest: info.digest,
            names: info.names,
            file_system: match info.file_system {
                FileSystem::Erofs => "erofs".to_owned(),
                FileSystem::Ext4 => "ext4".to_owned(),
            },
            size: info.size,
            created_at: self.time(info.created_ms),
            source: info.source,
            config: info.config,
        }
    }

    pub(crate) fn kernel(&self, info: KernelInfo) -> Kernel {
        Kernel {
            name: info.name,
            release: info.release,
            discovery: info.discovery.as_str().to_owned(),
            sha256: info.sha256,
            size: info.size,
            created_at: self.time(info.created_ms),
            source: info.source,
            is_default: info.is_default,
            outdated: info.outdated,
        }
    }
}

pub(crate) fn damage(damage: microvm_ports::snapshot::Damage) -> Damage {
    Damage {
        part: damage.part,
        first_byte: damage.first_byte,
        end_byte: damage.end_byte,
        detail: damage.detail,
    }
}

pub(crate) fn damage_text(damage: &microvm_ports::snapshot::Damage) -> String {
    format!(
        "{} is damaged in bytes {} to {}: {}",
        damage.part, damage.first_byte, damage.end_byte, damage.detail
    )
}

pub(crate) fn hypervisor(report: Capabilities) -> HypervisorInfo {
    HypervisorInfo {
        driver: report.driver.to_owned(),
        version: report.version,
        program: report.program.map_or_else(|| "(none)".to_owned(), Utf8PathBuf::into_string),
        accelerator: report.accelerator.kind.to_string(),
        accelerator_reason: report.accelerator.reason,
        confinement: report
            .confinement
            .iter()
            .map(|(name, layer)| (name.clone(), layer.to_string()))
            .collect(),
    }
}
