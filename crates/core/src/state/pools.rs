//! Pools of this server, in memory.

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
pub(crate) struct PoolTable(Mutex<BTreeMap<Key, Arc<Pool>>>);

/// Tenant and name.
type Key = (String, Name);

/// One pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) inner: Mutex<Inner>,
    /// Told when something changed that filling depends on.
    pub(crate) changed: Notify,
    /// Told when a VM was made, or could not be.
    pub(crate) made: Notify,
    /// Ends its filling.
    pub(crate) ending: CancellationToken,
    /// Cancelled when its filling has ended.
    pub(crate) ended: CancellationToken,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) record: PoolRecord,
    /// Oldest first.
    pub(crate) waiting: VecDeque<Waiting>,
    /// VMs being made.
    pub(crate) filling: usize,
    /// VMs that are being made for somebody who found none waiting.
    pub(crate) acquiring: usize,
    /// Reason why the last one could not be made; `None` after a success.
    pub(crate) failure: Option<String>,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// When the first and the last VM were taken since the pool was last filled, by the clock that is never set back.
    pub(crate) taken: Option<(Instant, Instant)>,
}

/// Whoever was given a VM has the host to himself for so long before another is made in its place: making one takes a
/// core for a tenth of a second, which the first command would wait for.
const QUIET: Duration = Duration::from_millis(100);
/// However many are taken one after the other, filling does not wait longer than this.
const LONGEST_QUIET: Duration = Duration::from_millis(500);

/// A VM that waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: VmId,
    /// Since when, milliseconds since 1970-01-01T00:00:00Z.
    pub(crate) since_ms: i64,
}

impl Inner {
    /// Until when nothing is to be made; `None` also where less than half of what shall wait is left: then the next
    /// customers matter more than the last one.
    pub(crate) fn quiet_until(&self) -> Option<Instant> {
        let enough = !self.waiting.is_empty() && self.waiting.len() * 2 >= self.record.min;
        let (first, last) = self.taken.filter(|_| enough)?;
        Some((last + QUIET).min(first + LONGEST_QUIET))
    }
}

impl Pool {
    pub(crate) fn new(record: PoolRecord, ending: CancellationToken) -> Arc<Self> {
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM that waits the shortest: its memory is the warmest, and old ones are replaced anyway.
    /// `now` is a moment of [`microvm_ports::Clock::steady`].
    pub(crate) fn take(&self, now: Instant) -> Option<VmId> {
        let mut inner = self.lock();
        let taken = inner.waiting.pop_back();
        inner.taken = Some((inner.taken.map_or(now, |(first, _)| first), now));
        // Released before the filling is told: it takes the lock at once.
        drop(inner);
        self.changed.notify_one();
        taken.map(|waiting| waiting.id)
    }
}

/// A place in a pool for a VM that is being made for somebody; given back when dropped.
pub(crate) struct Place(Arc<Pool>);

impl Place {
    pub(crate) fn take(pool: &Arc<Pool>, inner: &mut Inner) -> Self {
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

impl PoolTable {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Pool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, tenant: &str, name: &Name, pool: Arc<Pool>) -> Result<(), ServiceError> {
        let mut pools = self.lock();
        let key = (tenant.to_owned(), name.clone());
        if pools.contains_key(&key) {
            return Err(ServiceError::PoolNameTaken(name.clone()));
        }
        pools.insert(key, pool);
        Ok(())
    }

    pub(crate) fn remove(&self, tenant: &str, name: &Name) -> Option<Arc<Pool>> {
        self.lock().remove(&(tenant.to_owned(), name.clone()))
    }

    pub(crate) fn find(&self, tenant: &str, name: &str) -> Result<Arc<Pool>, ServiceError> {
        let pools = self.lock();
        let found = pools.iter().find(|((owner, known), _)| owner == tenant && known.as_str() == name);
        found.map(|(_, pool)| Arc::clone(pool)).ok_or_else(|| ServiceError::UnknownPool(name.to_owned()))
    }

    /// All pools of a tenant by name.
    pub(crate) fn of(&self, tenant: &str) -> Vec<Arc<Pool>> {
        let pools = self.lock();
        pools.iter().filter(|((owner, _), _)| owner == tenant).map(|(_, pool)| Arc::clone(pool)).collect()
    }

    /// All pools of all tenants.
    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        self.lock().values().cloned().collect()
    }

    /// Something ended that may make room in a pool.
    pub(crate) fn vm_gone(&self, tenant: &str, pool: &Name) {
        if let Some(pool) = self.lock().get(&(tenant.to_owned(), pool.clone())) {
            pool.changed.notify_one();
        }
    }
}
