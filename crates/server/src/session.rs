//! The application as one request uses it.

use std::ops::Deref;
use std::sync::Arc;

use microvm_core::{GuestLease, ServiceError, Services};
use microvm_types::{Caller, OperationName, VmRef};

use crate::app::App;

/// The application, with the services as the caller of this request sees them.
#[derive(Clone)]
pub(crate) struct Session {
    app: Arc<App>,
    pub(crate) services: Services,
    /// Operation that the caller asked for, and may do.
    pub(crate) operation: OperationName,
}

impl Session {
    pub(crate) fn new(app: &Arc<App>, caller: &Caller, request: &str, operation: OperationName) -> Self {
        Self { app: Arc::clone(app), services: app.engine.as_caller(caller, request), operation }
    }

    /// The guest of a VM, for the operation of this request.
    pub(crate) async fn guest(&self, vm: &VmRef) -> Result<GuestLease, ServiceError> {
        self.services.vms.guest(vm, self.operation).await
    }
}

impl Deref for Session {
    type Target = App;
    fn deref(&self) -> &App {
        &self.app
    }
}
