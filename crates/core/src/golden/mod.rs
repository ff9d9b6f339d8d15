//! Golden snapshots: what a template boots to is booted once and forked ever after.

mod old;
mod versions;
mod warm_up;

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::storage::{ResolvedImage, ResolvedKernel};
use microvm_ports::{DocumentKind, Progress, StorageError};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::template::{InitMode, Template};
use microvm_types::vm::{LOCAL_TENANT, Limits, NewVm, Origin};
use microvm_types::{ErrorKind, SnapshotId, VmId};
use serde_json::json;
use tokio::sync::oneshot;

pub use self::versions::GoldenVersion;

pub(crate) use self::old::keep_young;
use crate::branch::prove;
use crate::context::Context;
use crate::creation::{self, BootChoice, CreateRequest, Parts, made_up_name};
use crate::error::ServiceError;
use crate::kept::names;
use crate::state::{GOLDEN_LABEL, Snapshot, StartingPoint};
use crate::undo;
use crate::vm::command::{Command, SnapshotOrder};
use crate::vm::guard::{self, delete_in_background};
use crate::vm::shared::Shared;

/// Machines that a golden snapshot is made ready for: so many that its memory is written once for all of them.
const CHILDREN: usize = 1_000;
/// A golden machine is deleted when nobody has used it for so long: its builder died.
const IDLE_SECONDS: u64 = 300;
/// Time in which a guest gives up memory that it does not have from a boot on. (Measured: some 350 MiB a second under TCG.)
const MEMORY_DEADLINE: Duration = Duration::from_secs(60);

/// Golden snapshots of templates.
#[derive(Debug, Clone)]
pub struct Goldens {
    context: Context,
}

/// Takes up what the last server was told to go back to, and when golden snapshots were used.
pub(crate) async fn load(shared: &Shared) -> Result<(), ServiceError> {
    let stored = shared.ports.store.documents(DocumentKind::GoldenChoice).await?;
    for (key, document) in stored.documents {
        match serde_json::from_value::<SnapshotId>(document) {
            Ok(id) => shared.goldens.choose(&key, Some(id)),
            Err(error) => tracing::warn!(%error, "a stored choice of a golden snapshot cannot be read"),
        }
    }
    let stored = shared.ports.store.documents(DocumentKind::GoldenUse).await?;
    for (id, document) in stored.documents {
        if let (Ok(id), Some(used_ms)) = (id.parse(), document.as_i64()) {
            shared.goldens.note_use(&id, used_ms);
        }
    }
    Ok(())
}

/// Removes machines that an earlier server booted for golden snapshots and did not live to take.
pub(crate) fn remove_stray_builders(shared: &Arc<Shared>) {
    for handle in shared.registry.all() {
        let record = handle.record();
        // All of them are ephemeral. A VM that is not was made of a golden snapshot by an earlier version of this program, which
        // left it the label.
        if record.labels.contains_key(GOLDEN_LABEL) && record.limits.ephemeral {
            delete_in_background(shared, &record.id);
        }
    }
}

impl Goldens {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// The golden snapshot of what VMs of these parts boot to, made now if there is none; `None` where they have to boot.
    pub(crate) async fn source(&self, parts: &Parts) -> Result<Option<StartingPoint>, ServiceError> {
        let template = &parts.template;
        // A user's disk and a shared folder belong to one machine, and an init of the image's own may note who it is when it starts.
        if !self.context.shared.settings.golden
            || !template.extra_disks.is_empty()
            || !template.shares.is_empty()
            || !template.volumes.is_empty()
            || template.init != InitMode::Agent
        {
            return Ok(None);
        }
        let Some(key) = self.key(template, &parts.image, &parts.kernel).await? else { return Ok(None) };
        let mut unfit: Option<SnapshotId> = None;
        loop {
            // One cell for each key: whoever comes while it is being made waits for it instead of booting another one.
            let cell = self.context.shared.goldens.cell(&key);
            let find = || self.find_or_make(&key, parts, unfit.as_ref());
            let id = cell.get_or_try_init(find).await?.clone();
            let error = match self.source_of(&id).await {
                Ok(source) => return Ok(Some(source)),
                Err(error) => error,
            };
            // Removed by somebody, or damaged: it is only a cache, made anew once.
            self.context.shared.goldens.forget(&key);
            tracing::warn!(snapshot = %id, %error, "a golden snapshot cannot be used");
            // Once only: a second failure is told, or every VM of the template would boot a machine for nothing.
            if unfit.is_some() || !is_unusable(&error) {
                return Err(error);
            }
            unfit = Some(id.clone());
            // What others build on stays, and is not used any more.
            if self.context.shared.ports.snapshots.remove_snapshot(&id).await.is_ok() {
                self.context.shared.snapshots.remove(&id);
            }
        }
    }

    async fn source_of(&self, id: &SnapshotId) -> Result<StartingPoint, ServiceError> {
        // A user can remove golden snapshots at any time: not found here means made anew.
        let snapshot = self.context.shared.snapshots.by_id(id)?;
        self.note_use(id).await;
        let ports = &self.context.shared.ports;
        let source = ports
            .snapshots
            .snapshot_source(id, CHILDREN, ports.load_shape(&snapshot.record.template).await?)
            .await?;
        Ok(StartingPoint {
            source,
            origin: Origin::Golden { snapshot: id.clone() },
            epoch: snapshot.record.epoch,
        })
    }

    /// Everything a booted machine depends on before it is told who it is, as a text. `None`: the hypervisor cannot branch.
    pub(super) async fn key(
        &self,
        template: &Template,
        image: &ResolvedImage,
        kernel: &ResolvedKernel,
    ) -> Result<Option<String>, ServiceError> {
        let Some(loader) = self.context.shared.ports.hypervisor(template)?.loader() else { return Ok(None) };
        // Another build of the VMM or another processor makes another key, and so another snapshot.
        let compatibility = loader.compatibility(&kernel.info).await?;
        // Every field is named: a new one does not compile before somebody has decided whether a booted machine depends
        // on it.
        let Template {
            kernel_arguments,
            vcpus,
            memory_mib,
            memory_max_mib,
            disk_mib,
            warm_up,
            // Resolved: names can come to mean something else.
            image: _,
            kernel: _,
            // Its part is in what states of it need.
            hypervisor: _,
            // Told to each VM by itself, after the snapshot.
            name: _,
            description: _,
            environment: _,
            start_commands: _,
            labels: _,
            hooks: _,
            // A limit of the host's, set anew for each VMM.
            cpu_percent: _,
            // How long is waited for it.
            boot_timeout_ms: _,
            // Templates with any of these have no golden snapshot; isolated is the only network there is.
            init: _,
            extra_disks: _,
            shares: _,
            volumes: _,
            network: _,
        } = template;
        let mut key = json!({
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
        if let Some(most) = memory_max_mib {
            // Only where it is: goldens of earlier versions keep their keys.
            key["memory_max_mib"] = json!(most);
        }
        Ok(Some(key.to_string()))
    }

    async fn find_or_make(
        &self,
        key: &str,
        parts: &Parts,
        unfit: Option<&SnapshotId>,
    ) -> Result<SnapshotId, ServiceError> {
        let current = self.current(key).map(|snapshot| snapshot.record.id);
        if let Some(id) = current.filter(|id| Some(id) != unfit) {
            return Ok(id);
        }
        // A choice that led to the unfit one must not lead there again.
        if unfit.is_some() {
            self.choose(key, None).await?;
        }
        self.make(key, parts).await
    }

    /// The version that was chosen, else the newest.
    pub(super) fn current(&self, key: &str) -> Option<Snapshot> {
        let chosen = self.context.shared.goldens.choice(key);
        let chosen = chosen.and_then(|id| self.context.shared.snapshots.by_id(&id).ok());
        chosen.or_else(|| self.context.shared.snapshots.goldens(key).pop())
    }

    /// Boots a machine of the template and keeps what it is then.
    pub(super) async fn make(&self, key: &str, parts: &Parts) -> Result<SnapshotId, ServiceError> {
        let template = &parts.template;
        tracing::info!(template = %template.name, "making the golden snapshot of a template");
        let neutral = Parts {
            template: neutral(template.clone()),
            image: parts.image.clone(),
            kernel: parts.kernel.clone(),
            held: None,
        };
        let shared = &self.context.shared;
        let id = shared.new_snapshot_id();
        let request = CreateRequest {
            // As long as the made-up names of its children: their host names are written over its own.
            name: Some(made_up_name(id.as_str())?),
            vm: NewVm {
                labels: [(GOLDEN_LABEL.to_owned(), "building".to_owned())].into(),
                limits: Limits { idle_seconds: Some(IDLE_SECONDS), ephemeral: true, ..Limits::default() },
                ..NewVm::default()
            },
            boot: BootChoice::Cold,
            start: true,
            ..CreateRequest::default()
        };
        // It is the server's own, whoever asked first.
        let server = Context::server(shared, LOCAL_TENANT);
        let builder = creation::create(&server, neutral, request, None, None).await?.record.id;
        let builder = guard::guard(shared, builder);
        // The builder goes in any case: what is kept of it is the snapshot.
        let outcome = self.take(&builder.id, id, key, template).await;
        guard::remove(builder, "machine of a golden snapshot").await;
        let golden = outcome?;
        let id = golden.record.id.clone();
        // Every later VM of the template begins here: it is not trusted before one has come up from it.
        if let Err(error) = prove(&server, &golden).await {
            if self.context.shared.ports.snapshots.remove_snapshot(&id).await.is_ok() {
                self.context.shared.snapshots.remove(&id);
            }
            let template = template.name.to_string();
            return Err(ServiceError::UnprovenGolden { template, cause: Box::new(error) });
        }
        Ok(id)
    }

    async fn take(
        &self,
        vm: &VmId,
        id: SnapshotId,
        key: &str,
        template: &Template,
    ) -> Result<Snapshot, ServiceError> {
        let shared = &self.context.shared;
        let name = format!("golden-{id}").parse().map_err(|error: microvm_types::NameError| {
            ServiceError::Invalid { field: "name", reason: error.to_string() }
        })?;
        let reserved = names::reserve(shared, LOCAL_TENANT, &name)?;
        // Before the snapshot: what the commands read is in the page cache of every child.
        warm_up::run(shared, vm, template).await?;
        await_memory(shared, vm, template).await?;
        let (taken, _) = oneshot::channel();
        let order = SnapshotOrder {
            id,
            name,
            description: format!("what the template {} boots to", template.name),
            purpose: SnapshotPurpose::Golden { key: key.to_owned() },
            full: true,
            stay_paused: true,
            progress: Progress::ignored(),
            taken,
        };
        let ask = |reply| Command::Snapshot { order, reply };
        let (_, golden) = undo::keep(shared.registry.by_id(vm)?.ask(ask).await?);
        names::keep(reserved, golden.clone());
        Ok(golden)
    }
}

/// Waits until the guest has given up what it does not have from a boot on: each child would have to, for itself.
async fn await_memory(shared: &Shared, vm: &VmId, template: &Template) -> Result<(), ServiceError> {
    let Some(memory_mib) = template.memory_at_boot_mib() else { return Ok(()) };
    let machine = shared.registry.by_id(vm)?.published.borrow().machine.clone();
    let Some(machine) = machine else { return Ok(()) };
    let balloon = machine.balloon().ok_or(ServiceError::NoBalloon)?;
    if !balloon.reached(memory_mib, MEMORY_DEADLINE).await? {
        tracing::warn!(template = %template.name, memory_mib, "the guest of its golden snapshot has not given up memory in time; its children go on with that");
    }
    Ok(())
}

/// A template without anything of who asked first: no variables, no commands, no labels, no hooks. Every field is named, so
/// that a new one does not compile before somebody has decided.
fn neutral(mut template: Template) -> Template {
    let Template {
        environment,
        start_commands,
        labels,
        hooks,
        cpu_percent,
        // The machine, and what it is told to do before the snapshot.
        name: _,
        description: _,
        image: _,
        kernel: _,
        hypervisor: _,
        kernel_arguments: _,
        vcpus: _,
        memory_mib: _,
        memory_max_mib: _,
        disk_mib: _,
        network: _,
        warm_up: _,
        init: _,
        boot_timeout_ms: _,
        extra_disks: _,
        shares: _,
        volumes: _,
    } = &mut template;
    environment.clear();
    start_commands.clear();
    labels.clear();
    hooks.clear();
    // It is made once for many, as fast as the host can.
    *cpu_percent = None;
    template
}

/// True if a golden snapshot is gone or damaged. A failure to read it may pass by itself.
fn is_unusable(error: &ServiceError) -> bool {
    error.kind() == ErrorKind::NotFound
        || matches!(error, ServiceError::Storage(StorageError::Damaged { .. }))
}
