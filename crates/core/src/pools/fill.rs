//! Keeping a pool filled.

use std::sync::Arc;
use std::time::Duration;

use microvm_types::pool::PoolRecord;
use microvm_types::vm::PoolMember;
use microvm_types::{Phase, VmId};
use tokio::task::JoinSet;

use super::Pools;
use crate::branch::probe;
use crate::creation::CreateRequest;
use crate::error::ServiceError;
use crate::state::{Pool, Waiting};
use crate::undo;
use crate::vm::command::Command;
use crate::vm::guard::{self, delete_in_background};
use crate::vms::create_from;

/// Longest rest after VMs could not be made, doubled from one second on.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Lives as long as the pool: makes what is missing, removes what is too old or dead.
pub(super) async fn keep_filled(pools: Pools, pool: Arc<Pool>) {
    let shared = Arc::clone(&pools.context.shared);
    // Also told if this task panics: whoever removes the pool waits for it.
    let _ended = pool.ended.clone().drop_guard();
    let mut making: JoinSet<Result<VmId, ServiceError>> = JoinSet::new();
    let mut failed_until = shared.ports.clock.steady();
    loop {
        let next_expiry = pools.remove_unfit(&pool);
        let rest_until = pool.lock().quiet_until().map_or(failed_until, |quiet| failed_until.max(quiet));
        // One moment for both: a rest that ends in between would wake nobody.
        let now = shared.ports.clock.steady();
        let missing = pools.reserve_missing(&pool, making.len(), now < rest_until);
        for _ in 0..missing {
            let (pools, pool) = (pools.clone(), Arc::clone(&pool));
            making.spawn(async move { pools.make_waiting(&pool).await });
        }
        let rests = rest_until > now;
        tokio::select! {
            () = pool.ending.cancelled() => break,
            () = shared.ending.cancelled() => break,
            () = pool.changed.notified() => {}
            () = shared.ports.clock.sleep_until(rest_until), if rests => {}
            () = async {
                match next_expiry {
                    Some(left) => shared.ports.clock.sleep(left).await,
                    None => std::future::pending().await,
                }
            } => {}
            Some(made) = making.join_next() => {
                let mut inner = pool.lock();
                match made {
                    Ok(Ok(id)) => {
                        let since_ms = shared.ports.clock.now_ms();
                        inner.waiting.push_back(Waiting { id, since_ms });
                        (inner.failure, inner.failures) = (None, 0);
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(pool = %inner.record.name, %error, "a VM for the pool could not be made");
                        inner.failure = Some(error.to_string());
                        inner.failures = inner.failures.saturating_add(1);
                        let rest = Duration::from_secs(1 << inner.failures.min(6).saturating_sub(1));
                        failed_until = shared.ports.clock.steady() + rest.min(LONGEST_REST);
                    }
                    Err(error) => tracing::error!(%error, "a task that made a VM for a pool panicked"),
                }
                inner.filling = making.len();
                pool.made.notify_waiters();
            }
        }
    }
    // What is being made is undone by its guards; a server that ends leaves the rest for the next one.
    making.abort_all();
    while let Some(made) = making.join_next().await {
        if let Ok(Ok(id)) = made {
            // Done in the moment of the end: whoever removes the pool removes it too.
            let since_ms = shared.ports.clock.now_ms();
            pool.lock().waiting.push_back(Waiting { id, since_ms });
        }
    }
}

impl Pools {
    /// How many VMs are to be begun now: what is missing to the minimum, within the maximum, and not more at once than
    /// the host has cores (but two, so that one that waits does not hold up the other).
    /// Their places are taken in the same moment, so that nobody else gets them too.
    fn reserve_missing(&self, pool: &Pool, making: usize, resting: bool) -> usize {
        let mut inner = pool.lock();
        // Waiting ones count as members, too, once their rows say `pooled`: the larger number is right.
        let alive = self.members(&inner.record);
        let wanted = inner.record.min.saturating_sub(inner.waiting.len() + making);
        let taken = alive.max(inner.waiting.len()) + making + inner.acquiring;
        let room = inner.record.max.saturating_sub(taken);
        let at_once = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let missing = if resting { 0 } else { wanted.min(room).min(at_once.saturating_sub(making)) };
        inner.filling = making + missing;
        if missing > 0 {
            inner.taken = None;
        }
        missing
    }

    /// VMs of a pool that exist, waiting or handed out.
    pub(super) fn members(&self, pool: &PoolRecord) -> usize {
        let all = self.context.shared.registry.of(&pool.tenant);
        let is_member = |record: &microvm_types::vm::VmRecord| {
            record.pool.as_ref().is_some_and(|member| member.pool == pool.name)
                && record.phase() != Phase::Creating
        };
        all.iter().filter(|handle| is_member(&handle.published.borrow().record)).count()
    }

    /// Drops from the list what is dead, removes what has waited too long; tells in how long the next one will have.
    fn remove_unfit(&self, pool: &Pool) -> Option<Duration> {
        let shared = &self.context.shared;
        let now = shared.ports.clock.now_ms();
        let mut inner = pool.lock();
        let age_ms = i64::try_from(inner.record.max_age_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let surplus = inner.waiting.len().saturating_sub(inner.record.min);
        let mut removed: Vec<VmId> = inner.waiting.drain(..surplus).map(|waiting| waiting.id).collect();
        inner.waiting.retain_mut(|waiting| {
            // The clock may have been set back since.
            waiting.since_ms = waiting.since_ms.min(now);
            let lives = shared
                .registry
                .by_id(&waiting.id)
                .is_ok_and(|handle| handle.published.borrow().record.phase() == Phase::Pooled);
            let old = now.saturating_sub(waiting.since_ms) >= age_ms;
            if old || !lives {
                removed.push(waiting.id.clone());
            }
            lives && !old
        });
        let oldest = inner.waiting.front().map(|waiting| waiting.since_ms);
        drop(inner);
        for id in removed {
            delete_in_background(shared, &id);
        }
        oldest.map(|since| {
            let left = since.saturating_add(age_ms).saturating_sub(now);
            Duration::from_millis(u64::try_from(left).unwrap_or(0) + 1)
        })
    }

    /// Makes one VM, has it go through all that it will do for whoever gets it, and lets it stand still.
    async fn make_waiting(&self, pool: &Pool) -> Result<VmId, ServiceError> {
        let record = pool.lock().record.clone();
        let request = CreateRequest { start: true, ..CreateRequest::default() };
        let member = PoolMember { pool: record.name.clone(), waiting: true };
        let shared = &self.context.shared;
        let id = create_from(&self.context, record.template, request, Some(member)).await?.record.id;
        let handle = shared.registry.by_id(&id)?;
        let unready = guard::guard(shared, id.clone());
        probe(shared, &id).await?;
        // The first identity change of a guest is slower than later ones: it is done before anybody waits for it.
        handle.ask(Command::Rehearse).await?;
        // What is left behind by the first command is met by the second.
        probe(shared, &id).await?;
        // Paused from here on: a VM that waits takes no processor time.
        handle.ask(Command::PutIntoPool).await?;
        undo::keep(unready);
        Ok(id)
    }
}
