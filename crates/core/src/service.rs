//! The service: what edges call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use microvm_ports::hypervisor::{ConsolePart, HypervisorReport, MachineCounters};
use microvm_ports::{ImageStore, KernelStore};
use microvm_types::template::{Overrides, Template};
use microvm_types::vm::{LOCAL_TENANT, Limits, Origin, PoolMember, Rest, VmRecord};
use microvm_types::{Life, Name, Phase, VmRef};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::abandoned::{self, CreationGuard};
use crate::activity::Activity;
use crate::actor::{Beginning, Command, Reply, VmActor};
use crate::admission;
use crate::error::ServiceError;
use crate::events::VmEvent;
use crate::lease::{GuestLease, UseGuard};
use crate::pools::Pools;
use crate::ports::Ports;
use crate::reconcile;
use crate::registry::{Registry, VmHandle};
use crate::settings::Settings;
use crate::shares;
use crate::snapshots::{Goldens, SnapshotIndex, keep_clean, keep_goldens_young};
use crate::unreadable::UnreadableParts;
use crate::view::{Snapshot, VmFilter, VmView};

/// Commands that may wait for one VM's actor before senders wait too.
const COMMAND_QUEUE: usize = 16;
/// How often a VM that goes to rest again and again is woken for one request.
const WAKE_TRIES: u32 = 3;
/// Events kept for slow watchers.
const EVENT_QUEUE: usize = 1_024;

/// A request for a new VM.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// Its name; `None`: one is made.
    pub name: Option<Name>,
    /// Template by name; `None`: the default one.
    pub template: Option<String>,
    /// Changes to the template.
    pub overrides: Overrides,
    /// Labels on top of the template's.
    pub labels: BTreeMap<String, String>,
    /// Free text of the owner's.
    pub metadata: BTreeMap<String, String>,
    /// What becomes of it over time.
    pub limits: Limits,
    /// Whether it is to run when the call returns.
    pub start: bool,
    /// Whether it has to boot.
    pub boot: BootChoice,
}

/// How a new VM comes to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootChoice {
    /// Forked from the golden snapshot of its template where that is possible.
    #[default]
    Auto,
    /// From nothing.
    Cold,
}

/// What actors and the service share.
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    pub(crate) registry: Registry,
    pub(crate) snapshots: SnapshotIndex,
    pub(crate) goldens: Goldens,
    pub(crate) pools: Pools,
    /// What is stored and could not be taken up when the service began.
    pub(crate) unreadable: UnreadableParts,
    /// Held while a snapshot is taken out of a chain: two at once could each build on what the other removes.
    pub(crate) absorbing: tokio::sync::Mutex<()>,
    /// Places of VMMs that wait for children.
    pub(crate) waiting_places: Arc<tokio::sync::Semaphore>,
    /// VMMs that wait and can be taken.
    pub(crate) ready_vmms: watch::Sender<usize>,
    /// Told when something was removed that may have left files behind.
    pub(crate) litter: Notify,
    pub(crate) events: broadcast::Sender<VmEvent>,
    pub(crate) ending: CancellationToken,
    pub(crate) actors: TaskTracker,
}

impl Shared {
    /// A new id, never used before, that sorts after those of all other snapshots.
    pub(crate) fn new_snapshot_id(&self) -> microvm_types::SnapshotId {
        self.snapshots.fresh_id(self.ports.clock.now_ms(), self.ports.random_u64())
    }
}

/// The service. Use it as `Arc<VmService>`; all methods may be called at the same time.
pub struct VmService {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for VmService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("VmService").field("ports", &self.shared.ports).finish_non_exhaustive()
    }
}

/// Starts the task of one VM and registers it.
pub(crate) fn spawn_actor(
    shared: &Arc<Shared>,
    record: VmRecord,
    beginning: Beginning,
) -> Result<VmHandle, ServiceError> {
    let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
    let (publish, snapshot) =
        watch::channel(Snapshot { record: record.clone(), machine: None, guest: None, unreachable: None });
    let activity = Arc::new(Activity::new(shared.ports.clock.now_ms()));
    let handle = VmHandle { commands, snapshot, activity: Arc::clone(&activity) };
    // What exists is served even if the limit was lowered meanwhile.
    let limit =
        if matches!(beginning, Beginning::Adopt) { usize::MAX } else { shared.settings.limits.max_vms };
    shared.registry.insert(&record.id, &record.name, handle.clone(), limit)?;
    let actor = VmActor::new(Arc::clone(shared), record, activity, inbox, publish);
    shared.actors.spawn(actor.run(beginning));
    Ok(handle)
}

impl VmService {
    /// Opens the service: cleans up after a crash and takes up the VMs that are still there.
    ///
    /// # Errors
    /// If the store cannot be read, or leftovers cannot be removed.
    pub async fn open(ports: Ports, settings: Settings) -> Result<Arc<Self>, ServiceError> {
        let shared = Arc::new(Shared {
            ports,
            settings,
            registry: Registry::default(),
            snapshots: SnapshotIndex::default(),
            goldens: Goldens::default(),
            pools: Pools::default(),
            unreadable: UnreadableParts::default(),
            absorbing: tokio::sync::Mutex::default(),
            waiting_places: Arc::new(tokio::sync::Semaphore::new(crate::waiting::MOST_ON_HOST)),
            ready_vmms: watch::Sender::new(0),
            litter: Notify::new(),
            events: broadcast::channel(EVENT_QUEUE).0,
            ending: CancellationToken::new(),
            actors: TaskTracker::new(),
        });
        let service = Arc::new(Self { shared });
        service.load_snapshots().await?;
        service.load_golden_choices().await?;
        service.load_golden_uses().await?;
        reconcile::reconcile(&service.shared).await?;
        service.remove_stray_sleeps().await;
        service.remove_stray_builders();
        service.load_pools().await?;
        service.shared.actors.spawn(keep_clean(Arc::clone(&service.shared)));
        service.shared.actors.spawn(keep_goldens_young(Arc::clone(&service.shared)));
        service.shared.actors.spawn(crate::room::keep_room(Arc::clone(&service.shared)));
        service.shared.litter.notify_one();
        Ok(service)
    }

    /// Ends the service; machines go on running and are taken up by the next one.
    pub async fn close(&self) {
        self.shared.ending.cancel();
        self.shared.actors.close();
        self.shared.actors.wait().await;
    }

    /// Creates a VM, and starts it if asked. If it fails, or if the future is dropped before it has ended,
    /// nothing is left of it.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a name that is taken, sizes that cannot be, and a boot that failed.
    pub async fn create(&self, request: CreateRequest) -> Result<VmView, ServiceError> {
        let shared = &self.shared;
        let template = self
            .template(request.template.as_deref().unwrap_or(&shared.settings.default_template))?
            .with(request.overrides.clone());
        admission::check_labels(&request.labels)?;
        admission::check_labels(&template.labels)?;
        self.create_from(template, request, None).await
    }

    /// Creates a VM of a template that was made for it.
    pub(crate) async fn create_from(
        &self,
        mut template: Template,
        request: CreateRequest,
        pool: Option<PoolMember>,
    ) -> Result<VmView, ServiceError> {
        let shared = &self.shared;
        admission::check(&template, &shared.settings.limits)?;
        // Unknown images and kernels are refused before anything is made.
        let (image, kernel) = tokio::try_join!(
            shared.ports.images.image(&template.image),
            shared.ports.kernels.kernel(&template.kernel)
        )?;
        admission::check_kernel(&template, &kernel.info)?;
        shares::admit(&shared.ports, &mut template, &kernel).await?;
        for disk in &mut template.extra_disks {
            let real = shared.ports.vm_storage.real_disk_path(disk.path.as_str().into()).await?;
            disk.format = Some(shared.ports.vm_storage.inspect_disk(&real, disk.format).await?);
            disk.path = real.into_string();
        }
        if request.limits.hibernate_seconds.is_some() {
            shares::check_whole(&template)?;
        }
        let golden = match request.boot {
            BootChoice::Auto if request.start => {
                match Box::pin(self.golden(&template, &image, &kernel)).await {
                    // A machine that does not come up would not come up for this VM either.
                    Err(
                        error @ (ServiceError::Boot { .. }
                        | ServiceError::ShuttingDown
                        | ServiceError::Launch(_)),
                    ) => {
                        return Err(error);
                    }
                    Err(error) => {
                        tracing::warn!(template = %template.name, %error, "there is no golden snapshot to fork from, the VM boots");
                        None
                    }
                    Ok(golden) => golden,
                }
            }
            BootChoice::Auto | BootChoice::Cold => None,
        };
        let (source, origin, epoch) = golden
            .map_or((None, Origin::Boot, 0), |golden| (Some(golden.source), golden.origin, golden.epoch));
        let now = shared.ports.clock.now_ms();
        let id = shared.ports.new_vm_id();
        let name = match request.name {
            Some(name) => name,
            None => made_up_name(id.as_str())?,
        };
        let mut labels = template.labels.clone();
        labels.extend(request.labels);
        let record = VmRecord {
            id,
            name,
            tenant: LOCAL_TENANT.to_owned(),
            life: Life::new(),
            failure: None,
            image_digest: image.info.digest,
            template,
            labels,
            metadata: request.metadata,
            limits: request.limits,
            machine: None,
            origin,
            pool,
            epoch,
            created_ms: now,
            updated_ms: now,
            started_ms: None,
        };
        let (reply, outcome) = oneshot::channel();
        let id = record.id.clone();
        let handle = spawn_actor(
            shared,
            record,
            Beginning::Create { start: request.start, source: source.map(Box::new), reply },
        )?;
        let guard = CreationGuard::new(shared, id);
        let outcome = outcome.await;
        guard.keep();
        outcome.map_err(|_| ServiceError::ShuttingDown)??;
        Ok(view(&handle))
    }

    /// VMs that match, in order of creation.
    #[must_use]
    pub fn list(&self, filter: &VmFilter) -> Vec<VmView> {
        self.shared.registry.all().iter().map(view).filter(|vm| filter.matches(&vm.record)).collect()
    }

    /// One VM.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`].
    pub fn get(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.shared.registry.find(vm).map(|handle| view(&handle))
    }

    /// Starts a VM that is stopped or failed. Running already is fine.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn start_vm(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.command(vm, |reply| Command::Start { cold: false, reply }).await
    }

    /// Boots a VM that is stopped, sleeps, or has failed from its disk: what a sleeping one had in its memory is given up, as
    /// after a power cut. Running already is fine.
    ///
    /// # Errors
    /// See [`ServiceError`]; a VM that sleeps still sleeps then.
    pub async fn start_vm_cold(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.command(vm, |reply| Command::Start { cold: true, reply }).await
    }

    /// Stops a VM: by its agent within `grace`, then hard; at once if `force`. Stopped already is fine.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn stop_vm(
        &self,
        vm: &VmRef,
        force: bool,
        grace: Option<Duration>,
    ) -> Result<VmView, ServiceError> {
        let grace = grace.unwrap_or(self.shared.settings.stop_grace);
        self.command(vm, |reply| Command::Stop { force, grace, reply }).await
    }

    /// Makes the processors of a VM stand still.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn pause_vm(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.command(vm, Command::Pause).await
    }

    /// Lets a paused VM go on.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn resume_vm(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.command(vm, Command::Resume).await
    }

    /// Asks a running guest to make do with so much memory; the rest goes back to the host.
    ///
    /// # Errors
    /// [`ServiceError::OverLimit`] above what the VM was created with; [`ServiceError::NoBalloon`].
    pub async fn resize_memory(&self, vm: &VmRef, memory_mib: u32) -> Result<VmView, ServiceError> {
        self.command(vm, |reply| Command::ResizeMemory { memory_mib, reply }).await
    }

    /// Removes a VM whatever it is doing: machine, files, row. Two callers at once both succeed.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn delete_vm(&self, vm: &VmRef) -> Result<(), ServiceError> {
        let handle = self.shared.registry.find(vm)?;
        let (reply, outcome) = oneshot::channel();
        if handle.commands.send(Command::Delete(reply)).await.is_err() {
            return gone_or_ending(&handle);
        }
        outcome.await.unwrap_or_else(|_| gone_or_ending(&handle))
    }

    /// Deletes a VM without waiting for it.
    pub(crate) fn delete_in_background(&self, id: microvm_types::VmId) {
        abandoned::delete_in_background(&self.shared, id);
    }

    async fn command(&self, vm: &VmRef, make: impl FnOnce(Reply) -> Command) -> Result<VmView, ServiceError> {
        self.refuse_waiting(vm)?;
        let handle = self.shared.registry.find(vm)?;
        self.ask(vm, make).await?;
        Ok(view(&handle))
    }

    /// Sends a command to a VM's actor and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        vm: &VmRef,
        make: impl FnOnce(oneshot::Sender<Result<T, ServiceError>>) -> Command,
    ) -> Result<T, ServiceError> {
        let handle = self.shared.registry.find(vm)?;
        let (reply, outcome) = oneshot::channel();
        let lost = || {
            if handle.snapshot.borrow().gone() {
                ServiceError::UnknownVm(vm.to_string())
            } else {
                ServiceError::ShuttingDown
            }
        };
        handle.commands.send(make(reply)).await.map_err(|_| lost())?;
        outcome.await.map_err(|_| lost())?
    }

    /// Wakes a VM that rests until somebody wants it.
    async fn wake(&self, vm: &VmRef, handle: &VmHandle) -> Result<(), ServiceError> {
        let (rest, phase) = {
            let now = handle.snapshot.borrow();
            (now.record.life.rest().cloned(), now.record.phase())
        };
        match (rest, phase) {
            (Some(Rest::Paused), Phase::Paused) => self.ask(vm, Command::Resume).await,
            (Some(Rest::Asleep { .. }), Phase::Hibernated) => {
                self.ask(vm, |reply| Command::Start { cold: false, reply }).await
            }
            _ => Ok(()),
        }
    }

    /// Puts a running or paused VM to disk with its memory, which frees the memory; the next start, or the next request
    /// that needs its guest, goes on where it was.
    ///
    /// # Errors
    /// See [`ServiceError`]; the VM goes on then.
    pub async fn hibernate_vm(&self, vm: &VmRef) -> Result<VmView, ServiceError> {
        self.command(vm, Command::Hibernate).await
    }

    /// The guest of a running VM. A VM whose channel is being opened again after a restart of the server is waited for.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`] with what to do.
    pub async fn guest(&self, vm: &VmRef) -> Result<GuestLease, ServiceError> {
        self.refuse_waiting(vm)?;
        self.guest_of(vm).await
    }

    /// A VM that waits in a pool is nobody's: what is done to it now would be done to whoever gets it.
    pub(crate) fn refuse_waiting(&self, vm: &VmRef) -> Result<(), ServiceError> {
        let handle = self.shared.registry.find(vm)?;
        let pools = handle.snapshot.borrow().record.is_pools();
        if pools { Err(ServiceError::UnknownVm(vm.to_string())) } else { Ok(()) }
    }

    /// The same for a VM that waits in a pool too.
    pub(crate) async fn guest_of(&self, vm: &VmRef) -> Result<GuestLease, ServiceError> {
        let handle = self.shared.registry.find(vm)?;
        // Counts as use from before it is looked at whether the VM rests: it is not put to rest meanwhile.
        let _use = UseGuard::begin(&handle.activity, &self.shared.ports.clock);
        let mut snapshot = handle.snapshot.clone();
        for _ in 0..WAKE_TRIES {
            let woken = self.wake(vm, &handle).await;
            let settled = snapshot.wait_for(|now| {
                now.gone()
                    || now.guest.is_some()
                    || now.unreachable.as_ref().is_some_and(|unreachable| unreachable.tried)
                    || !matches!(now.record.phase(), Phase::Running | Phase::Starting)
            });
            let now = tokio::time::timeout(self.shared.settings.adopt_deadline, settled)
                .await
                .map_err(|_| not_running(Phase::Starting))?
                .map_err(|_| ServiceError::ShuttingDown)?
                .clone();
            match now.guest {
                _ if now.gone() => return Err(ServiceError::UnknownVm(vm.to_string())),
                Some(guest) if now.record.phase() == Phase::Running => {
                    return Ok(GuestLease::new(guest, handle.activity, Arc::clone(&self.shared.ports.clock)));
                }
                None if now.record.phase() == Phase::Running
                    && let Some(unreachable) = now.unreachable =>
                {
                    return Err(unreachable.error(&now.record.name, self.shared.ports.clock.now_ms()));
                }
                None | Some(_)
                    if now.record.phase() == Phase::Paused
                        && now.record.life.rest() == Some(&Rest::DiskFull) =>
                {
                    return Err(VmActor::no_room());
                }
                // It went to rest, or from one rest into another, while this was asked.
                _ if now.record.life.rest().is_some() && !matches!(woken, Err(ServiceError::Storage(_))) => {}
                _ => {
                    woken?;
                    return Err(not_running(now.record.phase()));
                }
            }
        }
        Err(not_running(handle.snapshot.borrow().record.phase()))
    }

    /// Counters of a VM that has a machine.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`].
    pub async fn counters(&self, vm: &VmRef) -> Result<MachineCounters, ServiceError> {
        let handle = self.shared.registry.find(vm)?;
        let (machine, phase) = {
            let now = handle.snapshot.borrow();
            (now.machine.clone(), now.record.phase())
        };
        Ok(machine.ok_or_else(|| not_running(phase))?.counters().await?)
    }

    /// At most `limit` bytes of a VM's console: the newest, or with `from` those from that offset on. What is kept is kept
    /// until the VM is deleted.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`]; storage errors.
    pub async fn console(
        &self,
        vm: &VmRef,
        from: Option<u64>,
        limit: usize,
    ) -> Result<ConsolePart, ServiceError> {
        let id = self.get(vm)?.record.id;
        let directory = self.shared.ports.vm_storage.vm_directory(&id);
        let console = self.shared.ports.hypervisor.console(&directory, from, limit).await;
        console.map_err(|cause| {
            microvm_ports::StorageError::Io { action: "reading the console in", path: directory, cause }
                .into()
        })
    }

    /// Changes of VMs from now on. A receiver that falls behind is told how many it missed.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<VmEvent> {
        self.shared.events.subscribe()
    }

    /// How many VMMs wait for the next children of forked VMs, ready to be taken.
    #[must_use]
    pub fn ready_vmms(&self) -> watch::Receiver<usize> {
        self.shared.ready_vmms.subscribe()
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> &dyn ImageStore {
        &*self.shared.ports.images
    }

    /// The kernel store.
    #[must_use]
    pub fn kernels(&self) -> &dyn KernelStore {
        &*self.shared.ports.kernels
    }

    /// Removes an image unless VMs depend on it.
    ///
    /// # Errors
    /// Storage errors, `InUse` among them.
    pub async fn remove_image(&self, reference: &str) -> Result<(), ServiceError> {
        Ok(self.images().remove_image(reference, &self.images_in_use()).await?)
    }

    /// Removes images without a name that no VM depends on, and leftovers; returns the bytes freed.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn collect_garbage(&self) -> Result<u64, ServiceError> {
        Ok(self.images().collect_garbage(&self.images_in_use()).await?)
    }

    fn images_in_use(&self) -> Vec<String> {
        let of_snapshots =
            self.shared.snapshots.all().into_iter().map(|snapshot| snapshot.record.image_digest);
        let everything = VmFilter { waiting: true, ..VmFilter::default() };
        let of_vms = self.list(&everything).into_iter().map(|vm| vm.record.image_digest);
        of_vms.chain(of_snapshots).collect()
    }

    /// What the hypervisor offers on this host.
    ///
    /// # Errors
    /// If its program is missing or too old.
    pub async fn host_report(&self) -> Result<HypervisorReport, ServiceError> {
        Ok(self.shared.ports.hypervisor.probe().await?)
    }

    /// The wall clock, in milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.shared.ports.clock.now_ms()
    }
}

pub(crate) fn view(handle: &VmHandle) -> VmView {
    handle.snapshot.borrow().view()
}

fn gone_or_ending(handle: &VmHandle) -> Result<(), ServiceError> {
    if handle.snapshot.borrow().gone() { Ok(()) } else { Err(ServiceError::ShuttingDown) }
}

fn not_running(phase: Phase) -> ServiceError {
    ServiceError::NotRunning(phase)
}

/// A name of the form `vm-` and the last ten characters of the id: random, and a good host name.
pub(crate) fn made_up_name(id: &str) -> Result<Name, ServiceError> {
    format!("vm-{}", &id[id.len() - 10..]).parse().map_err(|error: microvm_types::NameError| {
        ServiceError::Invalid { field: "name", reason: error.to_string() }
    })
}
