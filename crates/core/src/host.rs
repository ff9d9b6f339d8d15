//! The host, and what the engine found on it.

use std::collections::HashMap;

use microvm_ports::hypervisor::Capabilities;
use microvm_types::Phase;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::ServiceError;
use crate::vm::standby::MOST_ON_HOST;
use crate::vms::reconcile::{self, StrayVm};

/// The host and the engine itself.
#[derive(Debug, Clone)]
pub struct Host {
    context: Context,
}

impl Host {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// Abilities of the hypervisor on this host.
    ///
    /// # Errors
    /// If its program is missing or too old.
    pub async fn report(&self) -> Result<Capabilities, ServiceError> {
        Ok(self.context.shared.ports.hypervisor.probe().await?)
    }

    /// VMs that have a disk here and no record, for people to decide on; see [`StrayVm`].
    ///
    /// # Errors
    /// If the directory of all VMs cannot be read.
    pub async fn strays(&self) -> Result<Vec<StrayVm>, ServiceError> {
        reconcile::strays(&self.context.shared).await
    }

    /// How many VMMs wait for the next children of forked VMs, ready to be taken.
    #[must_use]
    pub fn ready_vmms(&self) -> watch::Receiver<usize> {
        self.context.shared.ready_vmms.subscribe()
    }

    /// VMMs that wait for children of forked VMs, or are being started for that.
    #[must_use]
    pub fn standby_vmms(&self) -> usize {
        MOST_ON_HOST.saturating_sub(self.context.shared.standby_places.available_permits())
    }

    /// How many VMs of all tenants are in each phase.
    #[must_use]
    pub fn phases(&self) -> HashMap<Phase, usize> {
        let mut phases = HashMap::new();
        for handle in self.context.shared.registry.all() {
            *phases.entry(handle.published.borrow().record.phase()).or_default() += 1;
        }
        phases
    }

    /// The wall clock, in milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.context.shared.ports.clock.now_ms()
    }
}
