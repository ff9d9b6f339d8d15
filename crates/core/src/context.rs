//! Who asks, and what the engine has: every service works in a context.

use std::sync::Arc;

use microvm_types::{Caller, VmRef};

use crate::error::ServiceError;
use crate::vm::registry::VmHandle;
use crate::vm::shared::Shared;

/// The engine as one caller sees it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) caller: Arc<Caller>,
}

impl Context {
    pub(crate) fn new(shared: &Arc<Shared>, caller: Caller) -> Self {
        Self { shared: Arc::clone(shared), caller: Arc::new(caller) }
    }

    /// The server itself, which acts for a tenant.
    pub(crate) fn server(shared: &Arc<Shared>, tenant: &str) -> Self {
        Self::new(shared, Caller::server(tenant))
    }

    /// A VM of the caller's tenant, also one that waits in a pool.
    pub(crate) fn find(&self, vm: &VmRef) -> Result<VmHandle, ServiceError> {
        self.shared.registry.find(&self.caller.tenant, vm)
    }

    /// A VM of the caller's. One that waits in a pool is nobody's: what is done to it now would be done to whoever gets it.
    pub(crate) fn owned(&self, vm: &VmRef) -> Result<VmHandle, ServiceError> {
        let handle = self.find(vm)?;
        let pools = handle.published.borrow().record.is_pools();
        if pools { Err(ServiceError::UnknownVm(vm.to_string())) } else { Ok(handle) }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Context").field("caller", &self.caller.name).finish_non_exhaustive()
    }
}
