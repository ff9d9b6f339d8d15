//! VMMs that wait for children of a VM: started and confined, without a state. To start one takes longer than to load a
//! state, so a VM that is forked gets its next child's VMM ahead (docs/design/0015).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::Utf8Path;
use microvm_ports::branch::{IncomingState, MemoryPages, StateMemory};
use microvm_ports::hypervisor::MachineStart;
use microvm_ports::snapshot::BranchSource;
use microvm_types::VmId;
use microvm_types::vm::VmRecord;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::task::AbortOnDropHandle;

use super::shared::Shared;
use crate::error::ServiceError;
use crate::launch::machine_spec;

/// After a fork, before the next VMM is started: its children come first.
const REFILL_AFTER: Duration = Duration::from_millis(100);
/// A VM that was not forked for so long keeps none: each takes some 20 MiB of the host.
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Machines that must still fit into the host's memory: it has better uses for it when it is short.
const LEAST_ROOM: usize = 16;
/// Most of them on a host, whosever children they wait for.
pub(crate) const MOST_ON_HOST: usize = 16;

/// A VMM that waits in the directory of a VM that is not made yet. It is ended when this is dropped before
/// [`StandbyVmm::claim`].
pub(crate) struct StandbyVmm {
    shared: Arc<Shared>,
    id: Option<VmId>,
    /// True while it is counted as ready to be taken.
    ready: bool,
    /// Its place among those of the host.
    _place: OwnedSemaphorePermit,
}

impl StandbyVmm {
    /// Starts one for a child of `parent`; `None` if there are enough on this host, or none can wait for such a machine.
    async fn start(
        shared: &Arc<Shared>,
        parent: &VmRecord,
        source: &LikeSource,
    ) -> Result<Option<Self>, ServiceError> {
        let ports = &shared.ports;
        // Taken without waiting: a VMM that waits for a place among VMMs that wait would be of no use.
        let Ok(place) = Arc::clone(&shared.standby_places).try_acquire_owned() else { return Ok(None) };
        let id = ports.new_vm_id();
        // From here on what there is of it is removed if this is dropped.
        let waiting = Self { shared: Arc::clone(shared), id: Some(id.clone()), ready: false, _place: place };
        let directory = ports.vm_storage.reserve_vm_directory(&id).await?;
        let files = ports.vm_storage.vm_files(&parent.id).await?;
        let image = ports.images.image(&parent.image_digest).await?;
        // A record of its parent with another id: machines of one template differ in nothing else before they load.
        let record = VmRecord { id, ..parent.clone() };
        let spec = microvm_ports::hypervisor::MachineSpec {
            directory,
            ..machine_spec(ports, &record, &image, files, source.start()).await?
        };
        match ports.hypervisor(&parent.template)?.standby().filter(|standby| standby.fits(&spec)) {
            Some(standby) => standby.prepare(&spec).await.map(|()| Some(waiting)).map_err(ServiceError::from),
            None => Ok(None),
        }
    }

    /// Id of the VM that it will belong to.
    pub(crate) fn id(&self) -> Option<&VmId> {
        self.id.as_ref()
    }

    /// It can be taken from now on.
    fn make_ready(mut self, ready: &Mutex<Vec<Self>>) {
        self.ready = true;
        let shared = Arc::clone(&self.shared);
        // Counted before anybody can take it.
        let mut ready = lock(ready);
        ready.push(self);
        shared.ready_vmms.send_modify(|count| *count += 1);
    }

    fn not_ready(&mut self) {
        if std::mem::take(&mut self.ready) {
            self.shared.ready_vmms.send_modify(|count| *count = count.saturating_sub(1));
        }
    }

    /// Its VM is being made: whoever makes it removes it, too.
    pub(crate) fn claim(mut self) {
        self.not_ready();
        self.id = None;
    }
}

impl Drop for StandbyVmm {
    fn drop(&mut self) {
        self.not_ready();
        let Some(id) = self.id.take() else { return };
        let ports = self.shared.ports.clone();
        self.shared.actors.spawn(async move {
            let directory = ports.vm_storage.vm_directory(&id);
            if let Err(error) = ports.hypervisors.sweep(&id, &directory).await {
                tracing::error!(vm = %id, %error, "a VMM that waited for a child could not be ended");
            } else if let Err(error) = ports.vm_storage.remove_vm_files(&id).await {
                tracing::error!(vm = %id, %error, "the directory of a VMM that waited could not be removed");
            }
        });
    }
}

/// Needs of a state that is not there yet.
struct LikeSource {
    state: IncomingState,
}

impl LikeSource {
    fn start(&self) -> MachineStart {
        MachineStart::Incoming(self.state.clone())
    }
}

/// Those that wait for children of one VM.
#[derive(Default)]
pub(crate) struct StandbyVmms {
    ready: Arc<Mutex<Vec<StandbyVmm>>>,
    refill: Option<Refill>,
}

/// The task that starts more.
struct Refill {
    task: AbortOnDropHandle<()>,
    /// Told when some were taken.
    taken: Arc<Notify>,
}

fn lock(ready: &Mutex<Vec<StandbyVmm>>) -> MutexGuard<'_, Vec<StandbyVmm>> {
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StandbyVmms {
    /// Gives up to `count` of them away.
    pub(crate) fn take(&self, count: usize) -> Vec<StandbyVmm> {
        let mut ready = lock(&self.ready);
        let kept = ready.len().saturating_sub(count);
        ready.split_off(kept)
    }

    /// Ends all, and starts no more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Starts more in a moment, for children like those of `source`, which was made of the VM `parent` and has `base`, the
    /// memory base of its machine.
    pub(crate) fn refill(
        &mut self,
        shared: &Arc<Shared>,
        parent: &VmRecord,
        source: &BranchSource,
        base: &Utf8Path,
    ) {
        let wanted = shared.settings.waiting_vmms;
        if wanted == 0
            || shared.ports.hypervisor(&parent.template).is_ok_and(|driver| driver.standby().is_none())
        {
            return;
        }
        // One that is being started just now is not given up for another.
        if let Some(refill) = self.refill.as_ref().filter(|refill| !refill.task.is_finished()) {
            refill.taken.notify_one();
            return;
        }
        let source = LikeSource {
            state: IncomingState {
                parts: Default::default(),
                memory: StateMemory::Pages { base: base.to_owned(), pages: MemoryPages::default() },
                compatibility: source.description.compatibility.clone(),
            },
        };
        let taken = Arc::new(Notify::new());
        let (shared_too, parent, ready) = (Arc::clone(shared), parent.clone(), Arc::clone(&self.ready));
        let again = Arc::clone(&taken);
        let task = shared.actors.spawn(async move {
            let shared = shared_too;
            tokio::select! {
                () = shared.ending.cancelled() => {}
                () = keep(&shared, &parent, &source, &ready, wanted, &again) => {}
            }
            // Also after `keep` gave up: each entry that is dropped ends its VMM.
            lock(&ready).clear();
        });
        self.refill = Some(Refill { task: AbortOnDropHandle::new(task), taken });
    }
}

/// Keeps as many as are wanted; returns when nobody has come for them for long, or when there can be none.
async fn keep(
    shared: &Arc<Shared>,
    parent: &VmRecord,
    source: &LikeSource,
    ready: &Mutex<Vec<StandbyVmm>>,
    wanted: usize,
    taken: &Notify,
) {
    loop {
        shared.ports.clock.sleep(REFILL_AFTER).await;
        while lock(ready).len() < wanted {
            let Ok(hypervisor) = shared.ports.hypervisor(&parent.template) else { return };
            let room = hypervisor.room(parent.template.machine_memory_mib(), 0).await;
            // Ends for good, not only for now: the next fork begins it again.
            if room.is_some_and(|room| room < LEAST_ROOM) {
                return;
            }
            match StandbyVmm::start(shared, parent, source).await {
                Ok(Some(waiting)) => waiting.make_ready(ready),
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(vm = %parent.id, %error, "no VMM waits for its next child");
                    return;
                }
            }
        }
        tokio::select! {
            () = taken.notified() => {}
            () = shared.ports.clock.sleep(KEPT_FOR) => return,
        }
    }
}
