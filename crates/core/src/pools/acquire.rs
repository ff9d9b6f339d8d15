//! Handing VMs out.

use std::sync::Arc;
use std::time::Duration;

use microvm_ports::storage::LostDisks;
use microvm_types::vm::{NewVm, Origin, PoolMember};
use microvm_types::{Name, OperationName, VmRef};
use tokio::time::Instant;

use super::Pools;
use crate::branch::check_name_free;
use crate::creation::{CreateRequest, made_up_name};
use crate::error::ServiceError;
use crate::events::{Event, Tier, What};
use crate::state::{Place, Pool};
use crate::undo;
use crate::vm::command::{Claim, Command};
use crate::vm::guard;
use crate::vm::view::VmView;
use crate::vms::create_from;

/// A wish for a VM of a pool.
#[derive(Debug, Clone, Default)]
pub struct AcquireRequest {
    /// Its name; `None`: one is made up.
    pub name: Option<Name>,
    /// Wishes of the owner.
    pub vm: NewVm,
}

impl Pools {
    /// Hands out a running VM of a pool: one that waits, else a fork, else one that boots; tells which it was.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a pool that has handed out as many as it may.
    pub async fn acquire(&self, pool: &str, request: AcquireRequest) -> Result<(VmView, Tier), ServiceError> {
        self.context.authorise(OperationName::POOL_ACQUIRE)?;
        let began = Instant::now();
        crate::admission::check_labels(&request.vm.labels)?;
        let pool = self.find(pool)?;
        let mut request = request;
        // The request wins over the pool.
        for (key, text) in pool.lock().record.metadata.clone() {
            request.vm.metadata.entry(key).or_insert(text);
        }
        if request.vm.limits.hibernate_seconds.is_some() {
            crate::launch::shares::check_whole(&pool.lock().record.template)?;
        }
        // A name that is taken is refused before a warm VM is used up for it.
        if let Some(name) = &request.name {
            check_name_free(&self.context, name)?;
        }
        let _place = loop {
            // Listened to before anything is looked at: what is made meanwhile is not missed.
            let made = pool.made.notified();
            if let Some(view) = self.claim_waiting(&pool, &request).await? {
                self.tell(&view, Tier::Pool, began.elapsed());
                return Ok((view, Tier::Pool));
            }
            match self.place(&pool)? {
                Some(place) => break place,
                // The last places are those of VMs that are being made: one of them will do.
                None => tokio::select! {
                    () = made => {}
                    () = pool.ending.cancelled() => return Err(ServiceError::UnknownPool(pool.lock().record.name.to_string())),
                },
            }
        };
        // Nobody waits: this VM is made for whoever asks, and its place is held by `_place` until it exists.
        let record = pool.lock().record.clone();
        let request =
            CreateRequest { name: request.name, vm: request.vm, start: true, ..CreateRequest::default() };
        let member = PoolMember { pool: record.name, waiting: false };
        let view = create_from(&self.context, record.template, request, Some(member)).await?;
        let tier = if view.record.origin == Origin::Boot { Tier::Boot } else { Tier::Fork };
        self.tell(&view, tier, began.elapsed());
        Ok((view, tier))
    }

    /// Takes back a VM that was handed out: it is deleted with all that was done in it, and where fewer wait than shall, a new
    /// one takes its place. True if one does.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] if it was not handed out by this pool; whatever keeps it from being deleted.
    pub async fn release(&self, pool: &str, vm: &VmRef) -> Result<bool, ServiceError> {
        self.context.authorise(OperationName::POOL_RELEASE)?;
        let pool = self.find(pool)?;
        let handle = self.context.find(vm)?;
        let name = pool.lock().record.name.clone();
        let is_handed_out = |member: &PoolMember| member.pool == name && !member.waiting;
        if !handle.record().pool.as_ref().is_some_and(is_handed_out) {
            let reason = format!("`{vm}` was not acquired from the pool `{name}`");
            return Err(ServiceError::Invalid { field: "vm", reason });
        }
        let is_short = || {
            let inner = pool.lock();
            inner.waiting.len() < inner.record.min
        };
        // Before and after the deletion: by its end the fresh one may be there already, and the last that waited be gone.
        let was_short = is_short();
        handle.delete(LostDisks::GiveUpRemoved).await?;
        Ok(was_short || is_short())
    }

    /// Hands out a VM that waits; `None` if none does that is fit for it.
    async fn claim_waiting(
        &self,
        pool: &Pool,
        request: &AcquireRequest,
    ) -> Result<Option<VmView>, ServiceError> {
        while let Some(id) = pool.take(self.context.shared.ports.clock.steady()) {
            let name = match &request.name {
                Some(name) => name.clone(),
                None => made_up_name(id.as_str())?,
            };
            let claim = Claim { name, vm: request.vm.clone() };
            let Ok(handle) = self.context.shared.registry.by_id(&id) else { continue };
            let handle = handle.by(&self.context.cause);
            // If whoever asks goes away now, the VM is nobody's.
            let unclaimed = guard::guard(&self.context.shared, id.clone());
            match handle.ask(|reply| Command::Claim { claim, reply }).await {
                Ok(()) => {
                    undo::keep(unclaimed);
                    return Ok(Some(handle.view()));
                }
                // A name that somebody took meanwhile will not become free with another VM.
                Err(error @ ServiceError::State(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(vm = %id, %error, "a waiting VM was not fit to be handed out");
                }
            }
        }
        Ok(None)
    }

    /// A place for one more VM; `None` while those that are being made have the last ones.
    fn place(&self, pool: &Arc<Pool>) -> Result<Option<Place>, ServiceError> {
        let mut inner = pool.lock();
        let max = inner.record.max;
        // Some that are on their way are counted twice here: never too few, and whoever waits looks again when they are
        // there.
        let coming = inner.acquiring + inner.filling;
        if self.members(&inner.record) + coming < max {
            return Ok(Some(Place::take(pool, &mut inner)));
        }
        if coming == 0 && inner.waiting.is_empty() {
            return Err(ServiceError::PoolExhausted { pool: inner.record.name.clone(), max });
        }
        Ok(None)
    }

    fn tell(&self, view: &VmView, tier: Tier, took: Duration) {
        self.context.shared.events.tell(Event {
            tenant: view.record.tenant.clone(),
            vm: view.record.id.clone(),
            name: view.record.name.clone(),
            cause: self.context.cause.clone(),
            what: What::Acquired { tier, took },
            at_ms: self.context.shared.ports.clock.now_ms(),
        });
    }
}
