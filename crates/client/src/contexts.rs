//! Contexts: interpreters that stay in a guest.

use microvm_api::context::{Context, ContextId, ContextList, CreateContext, ExecuteCode, ExecutionLine};
use microvm_api::operations::context;
use microvm_types::VmRef;

use crate::client::Client;
use crate::error::ClientError;
use crate::lines::Lines;

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Contexts of a VM.
    pub async fn contexts(&self, vm: &VmRef) -> Result<ContextList, ClientError> {
        self.ask::<context::List>(vm).await
    }

    /// Starts a context.
    pub async fn create_context(&self, vm: &VmRef, wish: &CreateContext) -> Result<Context, ClientError> {
        self.tell::<context::Create>(vm, wish).await
    }

    /// Ends a context.
    pub async fn remove_context(&self, vm: &VmRef, id: &ContextId) -> Result<(), ClientError> {
        self.ask::<context::Remove>(&(vm.clone(), id.clone())).await
    }

    /// Ends a context and starts it again.
    pub async fn restart_context(&self, vm: &VmRef, id: &ContextId) -> Result<Context, ClientError> {
        self.ask::<context::Restart>(&(vm.clone(), id.clone())).await
    }

    /// Interrupts what a context executes.
    pub async fn interrupt_context(&self, vm: &VmRef, id: &ContextId) -> Result<(), ClientError> {
        self.ask::<context::Interrupt>(&(vm.clone(), id.clone())).await
    }

    /// Executes code; the lines tell what comes of it. Dropping them interrupts it.
    pub async fn execute_code(
        &self,
        vm: &VmRef,
        code: &ExecuteCode,
    ) -> Result<Lines<ExecutionLine>, ClientError> {
        self.tell::<context::Execute>(vm, code).await
    }
}
