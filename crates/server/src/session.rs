//! The application as one request uses it.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use microvm_core::Services;
use microvm_types::{Caller, ErrorKind};

use crate::app::App;
use crate::failure::Failure;

/// The application, with the services as the caller of this request sees them.
#[derive(Clone)]
pub(crate) struct Session {
    app: Arc<App>,
    pub(crate) services: Services,
}

impl Session {
    pub(crate) fn new(app: &Arc<App>, caller: &Caller) -> Self {
        Self { app: Arc::clone(app), services: app.engine.as_caller(caller) }
    }
}

impl Deref for Session {
    type Target = App;
    fn deref(&self) -> &App {
        &self.app
    }
}

impl FromRequestParts<Arc<App>> for Session {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        // Put there by whoever let the caller in.
        let caller = parts.extensions.get::<Caller>().ok_or_else(|| {
            Failure::new(ErrorKind::Internal, "caller_missing", "nobody has told who calls")
        })?;
        Ok(Self::new(app, caller))
    }
}
