//! Parts that actors and services share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use microvm_types::SnapshotId;
use microvm_types::template::Template;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::registry::Registry;
use super::standby::MOST_ON_HOST;
use crate::error::ServiceError;
use crate::events::Spine;
use crate::ports::Ports;
use crate::settings::Settings;
use crate::state::{GoldenTable, PoolTable, Reservations, SnapshotIndex, UnreadableParts, VolumeTable};
use crate::template_source::TemplateSet;

/// Part of a small disk that is kept at most.
const SMALL_DISK_PART: u64 = 50;
/// So many times the reserve or less is nearly too little.
const NEARLY: u64 = 4;

/// Room on the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    /// Above the reserve, by a few times it.
    Nearly,
    /// Less than the reserve is free.
    Short,
}

/// Archives, and lists of changes, that are made at once for whoever reads them.
pub(crate) const EXPORTS_AT_ONCE: usize = 4;

/// Parts that actors and services share.
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    pub(crate) registry: Registry,
    pub(crate) snapshots: SnapshotIndex,
    pub(crate) goldens: GoldenTable,
    pub(crate) pools: PoolTable,
    pub(crate) reservations: Reservations,
    /// Stored things that could not be taken up when the engine began.
    pub(crate) unreadable: UnreadableParts,
    /// Held while a snapshot is taken out of a chain: two at once could each build on what the other removes.
    pub(crate) absorbing: tokio::sync::Mutex<()>,
    pub(crate) volumes: VolumeTable,
    /// Held while a volume is made or removed.
    pub(crate) making_volumes: tokio::sync::Mutex<()>,
    /// Places of VMMs that wait for children.
    pub(crate) standby_places: Arc<Semaphore>,
    /// VMMs that wait and can be taken.
    pub(crate) ready_vmms: watch::Sender<usize>,
    /// Turns of exports.
    pub(crate) export_turns: Arc<Semaphore>,
    /// Told when something was removed that may have left files behind.
    pub(crate) litter: Notify,
    /// Names of images between the steps of builds that go on.
    pub(crate) build_names: Mutex<BTreeSet<String>>,
    /// Held by builds of images and creations of VMs, which use images and golden snapshots that nothing names yet. Nobody waits for
    /// the other side of it.
    pub(crate) making: tokio::sync::RwLock<()>,
    pub(crate) events: Spine,
    pub(crate) ending: CancellationToken,
    pub(crate) actors: TaskTracker,
}

impl Shared {
    pub(crate) fn new(ports: Ports, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            ports,
            reservations: Reservations::within(settings.limits),
            settings,
            registry: Registry::default(),
            snapshots: SnapshotIndex::default(),
            goldens: GoldenTable::default(),
            pools: PoolTable::default(),
            unreadable: UnreadableParts::default(),
            absorbing: tokio::sync::Mutex::default(),
            volumes: VolumeTable::default(),
            making_volumes: tokio::sync::Mutex::default(),
            standby_places: Arc::new(Semaphore::new(MOST_ON_HOST)),
            ready_vmms: watch::Sender::new(0),
            export_turns: Arc::new(Semaphore::new(EXPORTS_AT_ONCE)),
            litter: Notify::new(),
            build_names: Mutex::default(),
            making: tokio::sync::RwLock::default(),
            events: Spine::new(),
            ending: CancellationToken::new(),
            actors: TaskTracker::new(),
        })
    }

    /// A new id, never used before, that sorts after those of all other snapshots.
    pub(crate) fn new_snapshot_id(&self) -> SnapshotId {
        self.snapshots.fresh_id(self.ports.clock.now_ms(), self.ports.random_u64())
    }

    /// How much of the host's disk is free.
    pub(crate) async fn room(&self) -> Result<Room, ServiceError> {
        let space = self.ports.vm_storage.space().await?;
        // Without a reserve there is still an end: that of the limit for all VMs is no error of a write.
        let reserve = self.settings.disk_reserve.min(space.total / SMALL_DISK_PART).max(1);
        Ok(match space.free {
            free if free < reserve => Room::Short,
            free if free < reserve.saturating_mul(NEARLY) => Room::Nearly,
            _ => Room::Enough,
        })
    }

    /// The templates as they are now.
    pub(crate) fn templates(&self) -> Arc<TemplateSet> {
        match &self.settings.template_source {
            Some(source) => source.current(),
            None => Arc::new(TemplateSet { templates: self.settings.templates.clone(), failed: Vec::new() }),
        }
    }

    /// One template; `None`: the default one.
    pub(crate) fn template(&self, name: Option<&str>) -> Result<Template, ServiceError> {
        let name = name.unwrap_or(&self.settings.default_template);
        let set = self.templates();
        // Of a file that cannot be used an older or built-in template of the same name is not what was meant.
        if let Some(failed) = set.failed.iter().find(|failed| failed.name == name) {
            return Err(failed.clone().into());
        }
        set.templates.get(name).cloned().ok_or_else(|| ServiceError::UnknownTemplate {
            name: name.to_owned(),
            known: set.templates.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}
