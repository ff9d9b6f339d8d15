//! Golden snapshots: what a template boots to is booted once and forked ever after.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use microvm_ports::Progress;
use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::{ResolvedImage, ResolvedKernel};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::template::{InitMode, Template};
use microvm_types::vm::{Limits, Origin};
use microvm_types::{ErrorKind, Phase, SnapshotId, VmId};
use serde_json::json;
use tokio::sync::{OnceCell, oneshot};

use super::create::NameGuard;
use super::index::Snapshot;
use crate::actor::{Command, SnapshotOrder};
use crate::error::ServiceError;
use crate::service::{BootChoice, CreateRequest, VmService, made_up_name};

/// Machines that a golden snapshot is made ready for: so many that its memory is written once for all of them.
const CHILDREN: usize = 1_000;
/// A golden machine is deleted when nobody has used it for so long: its builder died.
const IDLE_SECONDS: u64 = 300;
/// Label of machines that are booted to make a golden snapshot.
pub(crate) const GOLDEN_LABEL: &str = "microvm.golden";

/// Golden snapshots by key; each is made once, by whoever comes first, while others wait.
#[derive(Debug, Default)]
pub(crate) struct Goldens {
    current: Mutex<HashMap<String, Arc<OnceCell<SnapshotId>>>>,
    /// Versions that somebody went back to; without a choice it is the newest.
    choices: Mutex<HashMap<String, SnapshotId>>,
    /// When each was last used, in milliseconds of the wall clock; noted once a day.
    uses: Mutex<HashMap<SnapshotId, i64>>,
}

impl Goldens {
    fn cell(&self, key: &str) -> Arc<OnceCell<SnapshotId>> {
        let mut cells = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(key.to_owned()).or_default())
    }

    /// The next VM looks anew.
    pub(super) fn forget(&self, key: &str) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(super) fn last_use(&self, id: &SnapshotId) -> Option<i64> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    pub(super) fn note_use(&self, id: &SnapshotId, now_ms: i64) {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), now_ms);
    }

    pub(super) fn choice(&self, key: &str) -> Option<SnapshotId> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(super) fn choose(&self, key: &str, id: Option<SnapshotId>) {
        let mut choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        match id {
            Some(id) => choices.insert(key.to_owned(), id),
            None => choices.remove(key),
        };
    }
}

/// A state to begin from, and what to note of it.
pub(crate) struct GoldenSource {
    pub(crate) source: BranchSource,
    pub(crate) origin: Origin,
    pub(crate) epoch: u64,
}

impl VmService {
    /// The golden snapshot of what `template` boots to, made now if there is none; `None` where VMs of this template have
    /// to boot.
    pub(crate) async fn golden(
        &self,
        template: &Template,
        image: &ResolvedImage,
        kernel: &ResolvedKernel,
    ) -> Result<Option<GoldenSource>, ServiceError> {
        // A user's disk and a shared folder belong to one machine, and an init of the image's own may note who it is when it starts.
        if !self.shared.settings.golden
            || !template.extra_disks.is_empty()
            || !template.shares.is_empty()
            || template.init != InitMode::Agent
        {
            return Ok(None);
        }
        let Some(key) = self.golden_key(template, image, kernel).await? else { return Ok(None) };
        let mut unfit: Option<SnapshotId> = None;
        loop {
            let cell = self.shared.goldens.cell(&key);
            let find = || self.find_or_make(&key, template, unfit.as_ref());
            let id = cell.get_or_try_init(find).await?.clone();
            let error = match self.source_of(&id).await {
                Ok(source) => return Ok(Some(source)),
                Err(error) => error,
            };
            // Removed by somebody, or damaged: it is only a cache, made anew once.
            self.shared.goldens.forget(&key);
            tracing::warn!(snapshot = %id, %error, "a golden snapshot cannot be used");
            if unfit.is_some() || !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Internal) {
                return Err(error);
            }
            unfit = Some(id.clone());
            // What others build on stays, and is not used any more.
            if self.shared.ports.snapshots.remove_snapshot(&id).await.is_ok() {
                self.shared.snapshots.remove(&id);
            }
        }
    }

    /// Removes machines that an earlier server booted for golden snapshots and did not live to take.
    pub(crate) fn remove_stray_builders(&self) {
        for handle in self.shared.registry.all() {
            let record = handle.snapshot.borrow().record.clone();
            if record.labels.contains_key(GOLDEN_LABEL) {
                self.delete_in_background(record.id);
            }
        }
    }

    async fn source_of(&self, id: &SnapshotId) -> Result<GoldenSource, ServiceError> {
        let snapshot = self.shared.snapshots.find(id.as_str())?;
        self.note_golden_use(id).await;
        let source = self.shared.ports.snapshots.snapshot_source(id, CHILDREN).await?;
        Ok(GoldenSource {
            source,
            origin: Origin::Golden { snapshot: id.clone() },
            epoch: snapshot.record.epoch,
        })
    }

    /// Everything a booted machine depends on before it is told who it is, as a text. `None`: the hypervisor cannot branch.
    pub(super) async fn golden_key(
        &self,
        template: &Template,
        image: &ResolvedImage,
        kernel: &ResolvedKernel,
    ) -> Result<Option<String>, ServiceError> {
        let discovery = kernel.info.discovery;
        let Some(compatibility) = self.shared.ports.hypervisor.compatibility(discovery).await? else {
            return Ok(None);
        };
        // Every field is named: a new one does not compile before somebody has decided whether a booted machine depends
        // on it.
        let Template {
            kernel_arguments,
            vcpus,
            memory_mib,
            disk_mib,
            warm_up,
            // Resolved: names can come to mean something else.
            image: _,
            kernel: _,
            // Told to each VM by itself, after the snapshot.
            name: _,
            description: _,
            environment: _,
            start_commands: _,
            labels: _,
            hooks: _,
            // How long is waited for it.
            boot_timeout_ms: _,
            // Templates with any of these have no golden snapshot; isolated is the only network there is.
            init: _,
            extra_disks: _,
            shares: _,
            network: _,
        } = template;
        let key = json!({
            "image": image.info.digest,
            "kernel": kernel.info.sha256,
            "initramfs": kernel.initramfs.file_name(),
            "arguments": kernel_arguments,
            "vcpus": vcpus,
            "memory_mib": memory_mib,
            "disk_mib": disk_mib,
            "warm_up": warm_up,
            "compatibility": compatibility,
        });
        Ok(Some(key.to_string()))
    }

    async fn find_or_make(
        &self,
        key: &str,
        template: &Template,
        unfit: Option<&SnapshotId>,
    ) -> Result<SnapshotId, ServiceError> {
        let current = self.current_golden(key).map(|snapshot| snapshot.record.id);
        if let Some(id) = current.filter(|id| Some(id) != unfit) {
            return Ok(id);
        }
        if unfit.is_some() {
            self.choose(key, None).await?;
        }
        self.make_golden(key, template).await
    }

    /// The version that was chosen, else the newest.
    pub(super) fn current_golden(&self, key: &str) -> Option<Snapshot> {
        let chosen = self.shared.goldens.choice(key);
        let chosen = chosen.and_then(|id| self.shared.snapshots.find(id.as_str()).ok());
        chosen.or_else(|| self.shared.snapshots.goldens(key).pop())
    }

    /// Boots a machine of the template and keeps what it is then.
    pub(super) async fn make_golden(
        &self,
        key: &str,
        template: &Template,
    ) -> Result<SnapshotId, ServiceError> {
        tracing::info!(template = %template.name, "making the golden snapshot of a template");
        let neutral = neutral(template.clone());
        let id = self.shared.new_snapshot_id();
        let request = CreateRequest {
            // As long as the made-up names of its children: their host names are written over its own.
            name: Some(made_up_name(id.as_str())?),
            labels: [(GOLDEN_LABEL.to_owned(), "building".to_owned())].into(),
            limits: Limits { idle_seconds: Some(IDLE_SECONDS), ephemeral: true, ..Limits::default() },
            boot: BootChoice::Cold,
            start: true,
            ..CreateRequest::default()
        };
        let builder =
            Builder { service: self, id: Some(self.create_from(neutral, request, None).await?.record.id) };
        let outcome = self.take_golden(&builder, id, key, template).await;
        builder.remove().await;
        let id = outcome?;
        // Every later VM of the template begins here: it is not trusted before one has come up from it.
        if let Err(error) = self.prove(&id).await {
            if self.shared.ports.snapshots.remove_snapshot(&id).await.is_ok() {
                self.shared.snapshots.remove(&id);
            }
            let template = template.name.to_string();
            return Err(ServiceError::UnprovenGolden { template, cause: Box::new(error) });
        }
        Ok(id)
    }

    async fn take_golden(
        &self,
        builder: &Builder<'_>,
        id: SnapshotId,
        key: &str,
        template: &Template,
    ) -> Result<SnapshotId, ServiceError> {
        let vm = builder.id.clone().ok_or(ServiceError::ShuttingDown)?;
        let name = format!("golden-{id}").parse().map_err(|error: microvm_types::NameError| {
            ServiceError::Invalid { field: "name", reason: error.to_string() }
        })?;
        let guard = NameGuard::reserve(&self.shared, &name, &id)?;
        self.warm_up(&vm, template).await?;
        let (taken, _) = oneshot::channel();
        let order = SnapshotOrder {
            id: id.clone(),
            name,
            description: format!("what the template {} boots to", template.name),
            purpose: SnapshotPurpose::Golden { key: key.to_owned() },
            full: true,
            stay_paused: true,
            progress: Progress::ignored(),
            taken,
        };
        let written = self.ask(&vm.into(), |reply| Command::Snapshot { order, reply }).await?;
        guard.keep(written.keep()?);
        Ok(id)
    }
}

/// A template without anything of who asked first: no variables, no commands, no labels, no hooks. Every field is named, so
/// that a new one does not compile before somebody has decided.
fn neutral(mut template: Template) -> Template {
    let Template {
        environment,
        start_commands,
        labels,
        hooks,
        // The machine, and what it is told to do before the snapshot.
        name: _,
        description: _,
        image: _,
        kernel: _,
        kernel_arguments: _,
        vcpus: _,
        memory_mib: _,
        disk_mib: _,
        network: _,
        warm_up: _,
        init: _,
        boot_timeout_ms: _,
        extra_disks: _,
        shares: _,
    } = &mut template;
    environment.clear();
    start_commands.clear();
    labels.clear();
    hooks.clear();
    template
}

/// The machine that is booted for a golden snapshot; removed in any case.
struct Builder<'a> {
    service: &'a VmService,
    id: Option<VmId>,
}

impl Builder<'_> {
    async fn remove(mut self) {
        if let Some(id) = self.id.take()
            && let Err(error) = self.service.delete_vm(&id.clone().into()).await
        {
            tracing::warn!(vm = %id, phase = %Phase::Deleting, %error, "the machine of a golden snapshot could not be deleted");
        }
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.service.delete_in_background(id);
        }
    }
}
