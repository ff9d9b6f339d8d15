//! Caller and engine together: every service works in a context.

use std::sync::Arc;

use microvm_types::{Caller, OperationName, VmRef};

use crate::error::ServiceError;
use crate::events::Cause;
use crate::vm::command::{Command, Reply};
use crate::vm::registry::VmHandle;
use crate::vm::shared::Shared;
use crate::vm::view::VmView;

/// The engine as one caller sees it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) caller: Arc<Caller>,
    /// Cause of everything done in this context.
    pub(crate) cause: Cause,
}

impl Context {
    pub(crate) fn new(shared: &Arc<Shared>, caller: Caller, correlation: &str) -> Self {
        let cause = Cause { caller: caller.name.as_str().into(), correlation: correlation.into() };
        Self { shared: Arc::clone(shared), caller: Arc::new(caller), cause }
    }

    /// The server itself, which acts for a tenant.
    pub(crate) fn server(shared: &Arc<Shared>, tenant: &str) -> Self {
        Self::new(shared, Caller::server(tenant), "")
    }

    /// Refuses what the caller may not do. Every public method of a service begins with it.
    pub(crate) fn authorise(&self, operation: OperationName) -> Result<(), ServiceError> {
        let Some(missing) = operation.missing(&self.caller) else { return Ok(()) };
        Err(ServiceError::Forbidden { caller: self.caller.name.clone(), operation, missing })
    }

    /// A VM of the caller's tenant, also one that waits in a pool.
    pub(crate) fn find(&self, vm: &VmRef) -> Result<VmHandle, ServiceError> {
        Ok(self.shared.registry.find(&self.caller.tenant, vm)?.by(&self.cause))
    }

    /// A VM of the caller's tenant that does not wait in a pool: what is done to a waiting one would be done to its next owner.
    pub(crate) fn owned(&self, vm: &VmRef) -> Result<VmHandle, ServiceError> {
        let handle = self.find(vm)?;
        let pools = handle.published.borrow().record.is_pools();
        if pools { Err(ServiceError::UnknownVm(vm.to_string())) } else { Ok(handle) }
    }

    /// Sends a command to a VM of the caller's; the VM after it.
    pub(crate) async fn command(
        &self,
        vm: &VmRef,
        make: impl FnOnce(Reply) -> Command,
    ) -> Result<VmView, ServiceError> {
        let handle = self.owned(vm)?;
        handle.ask(make).await?;
        Ok(handle.view())
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Context").field("caller", &self.caller.name).finish_non_exhaustive()
    }
}
