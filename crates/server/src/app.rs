//! State shared by all handlers.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use camino::Utf8PathBuf;
use microvm_api::time::Zone;
use microvm_core::Engine;
use tokio_util::sync::CancellationToken;

use crate::bounds::Bounds;
use crate::caller::{Authenticator, PeerAuthenticator};
use crate::limits::Limits;
use crate::turns::Turns;

/// Settings of the edge, chosen by the operator.
#[derive(Debug, Clone)]
pub struct AppSettings {
    /// Root directory of this server.
    pub root: Utf8PathBuf,
    /// Zone of all timestamps.
    pub zone: Zone,
}

/// The application: the engine and what the edge adds.
pub struct App {
    pub(crate) engine: Arc<Engine>,
    pub(crate) settings: AppSettings,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) limits: Limits,
    pub(crate) bounds: Bounds,
    pub(crate) started: Instant,
    /// The OpenAPI document as it is sent: it never changes, and making it takes milliseconds.
    pub(crate) openapi: OnceLock<Bytes>,
    /// Turns of contexts.
    pub(crate) turns: Turns,
    /// Cancelled when the server ends, so that endless streams end too.
    pub(crate) ending: CancellationToken,
}

impl std::fmt::Debug for App {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("App").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl App {
    /// An application that knows its callers by the credentials of their processes.
    #[must_use]
    pub fn new(engine: Arc<Engine>, settings: AppSettings, ending: CancellationToken) -> Self {
        // Installed before the first event: what happens earlier would not be counted.
        let _ = crate::metrics::recorder();
        engine.observe(Arc::new(crate::metrics::Counting));
        let authenticator = Arc::new(PeerAuthenticator::new());
        let (limits, started) = (Limits::default(), Instant::now());
        Self {
            engine,
            settings,
            authenticator,
            limits,
            bounds: Bounds::default(),
            started,
            openapi: OnceLock::new(),
            turns: Turns::default(),
            ending,
        }
    }

    /// The same application with another way to know its callers.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticator = authenticator;
        self
    }

    /// The same application with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same application with other bounds of requests into guests.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    pub(crate) fn time(&self, milliseconds: i64) -> String {
        self.settings.zone.format(milliseconds)
    }

    pub(crate) fn now(&self) -> String {
        self.time(self.engine.now_ms())
    }
}
