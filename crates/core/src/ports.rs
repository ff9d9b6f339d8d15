//! Everything the service needs from the outside.

use std::sync::Arc;

use microvm_ports::capabilities::MemoryShape;
use microvm_ports::{
    Clock, GuestConnector, HookRunner, Hypervisor, ImageStore, KernelStore, SnapshotStore, StateStore,
    VmStorage, VolumeStore,
};
use microvm_types::VmId;
use microvm_types::template::Template;

use crate::error::ServiceError;
use crate::hypervisors::Hypervisors;

/// The drivers a service works with. Cheap to clone.
#[derive(Clone)]
pub struct Ports {
    /// Start machines.
    pub hypervisors: Hypervisors,
    /// Opens guest channels.
    pub connector: Arc<dyn GuestConnector>,
    /// Keeps records.
    pub store: Arc<dyn StateStore>,
    /// Keeps images.
    pub images: Arc<dyn ImageStore>,
    /// Keeps kernels.
    pub kernels: Arc<dyn KernelStore>,
    /// Keeps the files of VMs.
    pub vm_storage: Arc<dyn VmStorage>,
    /// Keeps named volumes.
    pub volumes: Arc<dyn VolumeStore>,
    /// Keeps snapshots and fork points.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Runs hooks.
    pub hooks: Arc<dyn HookRunner>,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
}

impl Ports {
    /// A new id, never used before.
    #[must_use]
    pub fn new_vm_id(&self) -> VmId {
        VmId::from_parts(self.clock.now_ms().unsigned_abs(), self.random_u64())
    }

    /// The hypervisor of a VM or a snapshot with this template.
    pub(crate) fn hypervisor(&self, recorded: &Template) -> Result<&Arc<dyn Hypervisor>, ServiceError> {
        self.hypervisors.of(&recorded.hypervisor)
    }

    /// Form of memory in which the hypervisor of a recorded template loads saved states.
    ///
    /// # Errors
    /// [`ServiceError::NoBranching`] if it loads none; as [`Hypervisor::probe`].
    pub(crate) async fn load_shape(&self, recorded: &Template) -> Result<MemoryShape, ServiceError> {
        let capabilities = self.hypervisor(recorded)?.probe().await?;
        capabilities.abilities.load.memory().ok_or(ServiceError::NoBranching)
    }

    pub(crate) fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.clock.fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Ports").field("hypervisors", &self.hypervisors).finish_non_exhaustive()
    }
}
