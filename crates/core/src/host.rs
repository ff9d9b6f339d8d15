//! The host: questions about all tenants together, and about what the engine found there.

mod prune;

use std::collections::HashMap;
use std::time::Duration;

use microvm_ports::DocumentKind;
use microvm_ports::hypervisor::Capabilities;
use microvm_ports::storage::{ImageInfo, KernelInfo};
use microvm_types::guest::Verdict;
use microvm_types::{ByteSize, Listed, OperationName, Phase, Unreadable};
use tokio::sync::watch;

pub use self::prune::{Holdings, Prunable, PruneExtent, PruneOutcome};
use crate::context::Context;
use crate::error::ServiceError;
use crate::pools::{PoolView, view};
use crate::settings::Settings;
use crate::vm::registry::VmHandle;
use crate::vm::standby::MOST_ON_HOST;
use crate::vms::reconcile::{self, StrayVm};

/// The host and the engine itself. Its questions are about all tenants; those of the other services are about the caller's.
#[derive(Debug, Clone)]
pub struct Host {
    context: Context,
}

/// Stored things of all tenants that could not be read when the engine began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostUnreadable {
    /// Records of VMs; their files and processes are left alone.
    pub vms: Vec<Unreadable>,
    /// Snapshots; their files are left alone.
    pub snapshots: Vec<Unreadable>,
    /// Records of pools; the VMs that wait in them are left alone.
    pub pools: Vec<Unreadable>,
}

/// Least free space of a root, in bytes, with which the server takes on work.
const LEAST_SPACE: u64 = 256 << 20;
/// Free space, in bytes, below which somebody should make room.
const LITTLE_SPACE: u64 = 2 << 30;
/// Time for the answer of one component.
const PATIENCE: Duration = Duration::from_secs(5);

/// Judgement of one component of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentHealth {
    /// Its name: `store`, `hypervisor`, `disk` or `guests`.
    pub name: &'static str,
    /// Judgement.
    pub verdict: Verdict,
    /// Observation, in words.
    pub detail: String,
}

impl Host {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// Settings of the service.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn settings(&self) -> Result<&Settings, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_INFO)?;
        Ok(&self.context.shared.settings)
    }

    /// Abilities of every hypervisor driver on this host, the first one first; the inner error is that of a program that is
    /// missing or too old.
    ///
    /// # Errors
    /// If the caller may not look at the host.
    pub async fn hypervisors(&self) -> Result<Vec<Result<Capabilities, ServiceError>>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_DOCTOR)?;
        let mut all = Vec::new();
        for driver in self.context.shared.ports.hypervisors.all() {
            all.push(driver.probe().await.map_err(ServiceError::from));
        }
        Ok(all)
    }

    /// All images, for a look at the host.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn images(&self) -> Result<Listed<ImageInfo>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_DOCTOR)?;
        Ok(self.context.shared.ports.images.images().await?)
    }

    /// All kernels, for a look at the host.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn kernels(&self) -> Result<Listed<KernelInfo>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_DOCTOR)?;
        Ok(self.context.shared.ports.kernels.kernels().await?)
    }

    /// VMs that have a disk here and no record, for people to decide on; see [`StrayVm`].
    ///
    /// # Errors
    /// If the directory of all VMs cannot be read.
    pub async fn strays(&self) -> Result<Vec<StrayVm>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_DOCTOR)?;
        reconcile::strays(&self.context.shared).await
    }

    /// Stored things that cannot be read.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn unreadable(&self) -> Result<HostUnreadable, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_DOCTOR)?;
        let all = &self.context.shared.unreadable;
        Ok(HostUnreadable { vms: all.vms.all(), snapshots: all.snapshots.all(), pools: all.pools.all() })
    }

    /// Asks every component that requests need whether it works now: the store is read, the hypervisor is probed, the free
    /// space is looked at, and the guests that do not answer are counted.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub async fn health(&self) -> Result<[ComponentHealth; 4], ServiceError> {
        self.context.authorise(OperationName::SYSTEM_HEALTH)?;
        let ports = &self.context.shared.ports;
        let store = async {
            let read = ports.store.documents(DocumentKind::Pool).await;
            read.map(|_| (Verdict::Healthy, "it can be read".to_owned())).map_err(|error| error.to_string())
        };
        let hypervisor = async {
            let Some(driver) = ports.hypervisors.all().next() else { return Err("there is none".to_owned()) };
            let found = driver.probe().await.map_err(|error| error.to_string())?;
            Ok((Verdict::Healthy, format!("{} {}", found.driver, found.version)))
        };
        let disk = async {
            let space = ports.vm_storage.space().await.map_err(|error| error.to_string())?;
            let verdict = match space.free {
                free if free < LEAST_SPACE => Verdict::Unhealthy,
                free if free < LITTLE_SPACE => Verdict::Degraded,
                _ => Verdict::Healthy,
            };
            Ok((verdict, format!("{} free", ByteSize(space.free))))
        };
        let guests = async {
            let all = self.context.shared.registry.all();
            let views = all.iter().map(VmHandle::view).filter(|vm| vm.record.phase() == Phase::Running);
            let (running, lost) =
                views.fold((0, 0), |(all, lost), vm| (all + 1, lost + usize::from(vm.unreachable.is_some())));
            let verdict = if lost == 0 { Verdict::Healthy } else { Verdict::Degraded };
            Ok((verdict, format!("{lost} of {running} running guests do not answer")))
        };
        // Side by side: one component that hangs must not hide the state of the others.
        let (store, hypervisor, disk, guests) = futures::join!(
            judged("store", store),
            judged("hypervisor", hypervisor),
            judged("disk", disk),
            judged("guests", guests)
        );
        Ok([store, hypervisor, disk, guests])
    }

    /// Number of VMMs that wait for the next children of forked VMs, ready to be taken.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn ready_vmms(&self) -> Result<watch::Receiver<usize>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_METRICS)?;
        Ok(self.context.shared.ready_vmms.subscribe())
    }

    /// Number of VMMs that wait for children of forked VMs, or are being started for that.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn standby_vmms(&self) -> Result<usize, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_METRICS)?;
        Ok(MOST_ON_HOST.saturating_sub(self.context.shared.standby_places.available_permits()))
    }

    /// Number of VMs in each phase.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn phases(&self) -> Result<HashMap<Phase, usize>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_METRICS)?;
        let mut phases = HashMap::new();
        for handle in self.context.shared.registry.all() {
            *phases.entry(handle.published.borrow().record.phase()).or_default() += 1;
        }
        Ok(phases)
    }

    /// All pools, by tenant and name.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn pools(&self) -> Result<Vec<PoolView>, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_METRICS)?;
        let shared = &self.context.shared;
        Ok(shared.pools.all().iter().map(|pool| view(shared, pool)).collect())
    }
}

/// Verdict on a component by its answer, or by its silence until [`PATIENCE`] is over.
async fn judged(
    name: &'static str,
    answer: impl Future<Output = Result<(Verdict, String), String>>,
) -> ComponentHealth {
    let (verdict, detail) = match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(found)) => found,
        Ok(Err(reason)) => (Verdict::Unhealthy, reason),
        Err(_) => (Verdict::Unhealthy, format!("it did not answer within {PATIENCE:?}")),
    };
    ComponentHealth { name, verdict, detail }
}
