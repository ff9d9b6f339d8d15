//! What is known of the pools of this server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microvm_types::pool::PoolRecord;
use microvm_types::{Name, VmId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::ServiceError;

/// All pools by name.
#[derive(Debug, Default)]
pub(crate) struct Pools(Mutex<BTreeMap<Name, Arc<Pool>>>);

/// One pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) inner: Mutex<Inner>,
    /// Told when something changed that filling depends on.
    pub(super) changed: Notify,
    /// Told when a VM was made, or could not be.
    pub(super) made: Notify,
    /// Ends its filling.
    pub(super) ending: CancellationToken,
    /// Cancelled when its filling has ended.
    pub(super) ended: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) record: PoolRecord,
    /// Oldest first.
    pub(super) waiting: VecDeque<Waiting>,
    /// VMs being made.
    pub(super) filling: usize,
    /// VMs that are being made for somebody who found none waiting.
    pub(super) acquiring: usize,
    /// Why the last one could not be made; `None` after a success.
    pub(super) failure: Option<String>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// When the first and the last VM were taken since the pool was last filled.
    pub(super) taken: Option<(Instant, Instant)>,
}

/// Whoever was given a VM has the host to himself for so long before another is made in its place: making one takes a
/// core for a tenth of a second, which the first command would wait for.
const QUIET: Duration = Duration::from_millis(100);
/// However many are taken one after the other, filling does not wait longer than this.
const LONGEST_QUIET: Duration = Duration::from_millis(500);

/// A VM that waits.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) id: VmId,
    /// Since when, milliseconds since 1970-01-01T00:00:00Z.
    pub(super) since_ms: i64,
}

impl Inner {
    /// Until when nothing is to be made; `None` also where less than half of what shall wait is left: then the next
    /// customers matter more than the last one.
    pub(super) fn quiet_until(&self) -> Option<Instant> {
        let enough = !self.waiting.is_empty() && self.waiting.len() * 2 >= self.record.min;
        let (first, last) = self.taken.filter(|_| enough)?;
        Some((last + QUIET).min(first + LONGEST_QUIET))
    }
}

impl Pool {
    pub(super) fn new(record: PoolRecord, ending: CancellationToken) -> Arc<Self> {
        let inner = Inner {
            record,
            waiting: VecDeque::new(),
            filling: 0,
            acquiring: 0,
            failure: None,
            failures: 0,
            taken: None,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            changed: Notify::new(),
            made: Notify::new(),
            ending,
            ended: CancellationToken::new(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM that waits the shortest: its memory is the warmest, and old ones are replaced anyway.
    pub(super) fn take(&self) -> Option<VmId> {
        let mut inner = self.lock();
        let taken = inner.waiting.pop_back();
        let now = Instant::now();
        inner.taken = Some((inner.taken.map_or(now, |(first, _)| first), now));
        drop(inner);
        self.changed.notify_one();
        taken.map(|waiting| waiting.id)
    }
}

/// A place in a pool for a VM that is being made for somebody; given back when dropped.
pub(super) struct Place(Arc<Pool>);

impl Place {
    pub(super) fn take(pool: &Arc<Pool>, inner: &mut Inner) -> Self {
        inner.acquiring += 1;
        Self(Arc::clone(pool))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().acquiring -= 1;
        self.0.changed.notify_one();
        self.0.made.notify_waiters();
    }
}

impl Pools {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Pool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, name: &Name, pool: Arc<Pool>) -> Result<(), ServiceError> {
        let mut pools = self.lock();
        if pools.contains_key(name) {
            return Err(ServiceError::PoolNameTaken(name.clone()));
        }
        pools.insert(name.clone(), pool);
        Ok(())
    }

    pub(super) fn remove(&self, name: &Name) -> Option<Arc<Pool>> {
        self.lock().remove(name)
    }

    pub(super) fn find(&self, name: &str) -> Result<Arc<Pool>, ServiceError> {
        let pools = self.lock();
        let found = pools.iter().find(|(known, _)| known.as_str() == name).map(|(_, pool)| Arc::clone(pool));
        found.ok_or_else(|| ServiceError::UnknownPool(name.to_owned()))
    }

    pub(super) fn all(&self) -> Vec<Arc<Pool>> {
        self.lock().values().cloned().collect()
    }

    /// Something ended that may make room in a pool.
    pub(crate) fn vm_gone(&self, pool: &Name) {
        if let Some(pool) = self.lock().get(pool) {
            pool.changed.notify_one();
        }
    }
}
