//! The application as one request uses it.

use std::ops::Deref;
use std::sync::Arc;

use microvm_core::Services;
use microvm_types::Caller;

use crate::app::App;

/// The application, with the services as the caller of this request sees them.
#[derive(Clone)]
pub(crate) struct Session {
    app: Arc<App>,
    pub(crate) services: Services,
}

impl Session {
    pub(crate) fn new(app: &Arc<App>, caller: &Caller, request: &str) -> Self {
        Self { app: Arc::clone(app), services: app.engine.as_caller(caller, request) }
    }
}

impl Deref for Session {
    type Target = App;
    fn deref(&self) -> &App {
        &self.app
    }
}
