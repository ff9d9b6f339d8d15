//! The one spine of events: everything that happens is told once, with who asked for it. Metrics, watchers and audit are fed
//! from here; core counts nothing itself.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use microvm_types::{Name, Phase, StopReason, VmId};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events kept for slow watchers.
const QUEUE: usize = 1_024;

/// Cause of an event: the caller and the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Name of the caller; `server` for what the server does by itself.
    pub caller: Arc<str>,
    /// Id of the request at the edge, the same for all of its events; empty outside requests.
    pub correlation: Arc<str>,
}

impl Cause {
    /// The server itself.
    #[must_use]
    pub fn server() -> Self {
        Self { caller: "server".into(), correlation: "".into() }
    }
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Owner of the VM.
    pub tenant: String,
    /// Id of the VM.
    pub vm: VmId,
    /// Its name then.
    pub name: Name,
    /// Cause of the event.
    pub cause: Cause,
    /// Kind of event, with its values.
    pub what: What,
    /// When, in milliseconds since 1970-01-01T00:00:00Z.
    pub at_ms: i64,
}

/// Kind of event, with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Its phase changed, or there is something to tell in the phase it is in.
    Phase {
        /// The phase that was told before.
        from: Phase,
        /// The phase now; [`Phase::Deleted`] is the last one.
        to: Phase,
        /// Why, where there is a reason to tell.
        reason: Option<String>,
        /// Of a VM that stopped, hibernated, failed or is deleted by itself: what ended it.
        stop: Option<StopReason>,
    },
    /// Its machine came up.
    Started {
        /// True for a boot, false for a machine that went on from a state.
        boot: bool,
        /// From the launch of the machine to its agent's answer.
        took: Duration,
    },
    /// Its state was taken, for a fork or a snapshot.
    Branched {
        /// Length of the pause.
        pause: Duration,
        /// Bytes of memory that were copied.
        changed_bytes: u64,
    },
    /// It was handed out by a pool.
    Acquired {
        /// Where it came from.
        tier: Tier,
        /// From the wish to its agent's answer.
        took: Duration,
    },
}

/// Where a VM came from when a pool was asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// It waited in the pool.
    Pool,
    /// It was forked from the golden snapshot.
    Fork,
    /// It booted.
    Boot,
}

impl Tier {
    /// The word used in metrics and in the interface.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Fork => "fork",
            Self::Boot => "boot",
        }
    }
}

/// Told of every event, in the order in which the events of one VM happened, before whoever asked has the answer. It must be
/// quick, and never wait.
pub trait Observer: Send + Sync {
    /// Notes an event.
    fn note(&self, event: &Event);
}

/// Tells events.
pub(crate) struct Spine {
    watchers: broadcast::Sender<Event>,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
}

impl Spine {
    pub(crate) fn new() -> Self {
        Self { watchers: broadcast::channel(QUEUE).0, observers: RwLock::default() }
    }

    pub(crate) fn tell(&self, event: Event) {
        for observer in &*self.observers.read().unwrap_or_else(PoisonError::into_inner) {
            observer.note(&event);
        }
        // Measurements are for observers: watchers would only fall behind by them. Nobody may be watching.
        if matches!(event.what, What::Phase { .. }) {
            let _ = self.watchers.send(event);
        }
    }

    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    pub(crate) fn watch(&self, tenant: &str) -> Events {
        Events { tenant: tenant.to_owned(), watcher: self.watchers.subscribe() }
    }
}

/// Changes of phase ([`What::Phase`]) of VMs of one tenant, from the moment on at which they were asked for.
#[derive(Debug)]
pub struct Events {
    tenant: String,
    watcher: broadcast::Receiver<Event>,
}

impl Events {
    /// The next event. Cancelling is safe.
    ///
    /// # Errors
    /// [`RecvError::Lagged`] with how many events, of all tenants, came and went unseen; [`RecvError::Closed`] at the end.
    pub async fn next(&mut self) -> Result<Event, RecvError> {
        loop {
            let event = self.watcher.recv().await?;
            if event.tenant == self.tenant {
                return Ok(event);
            }
        }
    }
}
