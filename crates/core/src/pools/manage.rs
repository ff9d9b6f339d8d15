//! Making, changing and removing pools.

use std::sync::Arc;

use microvm_ports::DocumentKind;
use microvm_types::pool::{DEFAULT_AGE_SECONDS, PoolRecord};
use microvm_types::template::Overrides;
use microvm_types::vm::LOCAL_TENANT;
use microvm_types::{Name, Phase};

use super::fill::keep_filled;
use super::state::{Pool, Waiting};
use crate::admission;
use crate::error::ServiceError;
use crate::service::VmService;

/// A pool to be made.
#[derive(Debug, Clone)]
pub struct PoolRequest {
    /// Its name.
    pub name: Name,
    /// Template by name; `None`: the default one.
    pub template: Option<String>,
    /// Changes to the template.
    pub overrides: Overrides,
    /// Warm VMs it is kept filled with.
    pub min: usize,
    /// Most VMs of it at once.
    pub max: usize,
    /// Seconds after which a waiting VM is replaced; `None`: an hour.
    pub max_age_seconds: Option<u64>,
}

/// What can be changed of a pool; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolChange {
    /// Warm VMs it is kept filled with.
    pub min: Option<usize>,
    /// Most VMs of it at once.
    pub max: Option<usize>,
    /// Seconds after which a waiting VM is replaced.
    pub max_age_seconds: Option<u64>,
}

/// A pool as it is at one moment.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// Its durable record.
    pub record: PoolRecord,
    /// VMs that wait.
    pub waiting: usize,
    /// VMs being made.
    pub filling: usize,
    /// VMs handed out that still exist.
    pub handed_out: usize,
    /// Why the last VM could not be made.
    pub failure: Option<String>,
}

impl VmService {
    /// Takes up the pools of the last server with the VMs that wait in them; those of pools that are gone are removed.
    pub(crate) async fn load_pools(&self) -> Result<(), ServiceError> {
        let stored = self.shared.ports.store.documents(DocumentKind::Pool).await?;
        for (name, reason) in &stored.unreadable {
            self.shared.unreadable.pools.add("pool", name, reason);
        }
        for (name, document) in stored.documents {
            match serde_json::from_value::<PoolRecord>(document) {
                Ok(record) => drop(self.add_pool(record)?),
                Err(error) => self.shared.unreadable.pools.add("pool", name, error),
            };
        }
        let unreadable = self.unreadable_pools();
        for handle in self.shared.registry.all() {
            let record = handle.snapshot.borrow().record.clone();
            let Some(member) = record.pool.filter(|member| member.waiting) else { continue };
            match self.shared.pools.find(member.pool.as_str()) {
                Ok(pool) if record.life.phase() == Phase::Pooled => {
                    pool.lock().waiting.push_back(Waiting { id: record.id, since_ms: record.created_ms });
                }
                // That a pool cannot be read does not mean that its VMs may be deleted.
                Err(_) if unreadable.iter().any(|pool| pool.name == member.pool.as_str()) => {}
                // One that was being made, or whose pool is gone.
                _ => self.delete_in_background(record.id),
            }
        }
        // Not before: what the new server makes must not be taken for something that the last one left.
        for pool in self.shared.pools.all() {
            self.begin_to_fill(pool);
        }
        Ok(())
    }

    fn add_pool(&self, record: PoolRecord) -> Result<Arc<Pool>, ServiceError> {
        let name = record.name.clone();
        let pool = Pool::new(record, self.shared.ending.child_token());
        self.shared.pools.insert(&name, Arc::clone(&pool))?;
        Ok(pool)
    }

    fn begin_to_fill(&self, pool: Arc<Pool>) {
        self.shared.actors.spawn(keep_filled(Arc::clone(&self.shared), pool));
    }

    /// Makes a pool and begins to fill it.
    ///
    /// # Errors
    /// See [`ServiceError`]; what the template says is checked as for a VM.
    pub async fn create_pool(&self, request: PoolRequest) -> Result<PoolView, ServiceError> {
        let settings = &self.shared.settings;
        let template = self
            .template(request.template.as_deref().unwrap_or(&settings.default_template))?
            .with(request.overrides);
        admission::check(&template, &settings.limits)?;
        admission::check_labels(&template.labels)?;
        self.images().image(&template.image).await?;
        let record = PoolRecord {
            name: request.name,
            tenant: LOCAL_TENANT.to_owned(),
            template,
            min: request.min,
            max: request.max,
            max_age_seconds: request.max_age_seconds.unwrap_or(DEFAULT_AGE_SECONDS),
            created_ms: self.now_ms(),
        };
        self.check_sizes(&record)?;
        if self.shared.pools.find(record.name.as_str()).is_ok() {
            return Err(ServiceError::PoolNameTaken(record.name));
        }
        self.keep_record(&record).await?;
        let pool = self.add_pool(record)?;
        self.begin_to_fill(Arc::clone(&pool));
        Ok(self.pool_view(&pool))
    }

    fn check_sizes(&self, record: &PoolRecord) -> Result<(), ServiceError> {
        let limit = self.shared.settings.limits.max_vms;
        if record.max == 0 || record.min > record.max {
            let reason = format!(
                "a pool of {} to {} VMs cannot be: min must not be above max, and max at least 1",
                record.min, record.max
            );
            return Err(ServiceError::Invalid { field: "max", reason });
        }
        if record.max > limit {
            return Err(ServiceError::OverLimit {
                field: "max",
                asked: record.max as u64,
                limit: limit as u64,
            });
        }
        if record.max_age_seconds == 0 {
            let reason = "0 would replace every VM at once: at least 1 second".to_owned();
            return Err(ServiceError::Invalid { field: "max_age_seconds", reason });
        }
        Ok(())
    }

    async fn keep_record(&self, record: &PoolRecord) -> Result<(), ServiceError> {
        let document = serde_json::to_value(record)
            .map_err(|error| ServiceError::Invalid { field: "pool", reason: error.to_string() })?;
        Ok(self.shared.ports.store.put_document(DocumentKind::Pool, record.name.as_str(), &document).await?)
    }

    fn pool_view(&self, pool: &Pool) -> PoolView {
        let inner = pool.lock();
        let (record, waiting, filling) = (inner.record.clone(), inner.waiting.len(), inner.filling);
        let failure = inner.failure.clone();
        drop(inner);
        let all = self.shared.registry.all();
        let handed_out = all
            .iter()
            .filter(|handle| {
                let snapshot = handle.snapshot.borrow();
                snapshot
                    .record
                    .pool
                    .as_ref()
                    .is_some_and(|member| member.pool == record.name && !member.waiting)
            })
            .count();
        PoolView { record, waiting, filling, handed_out, failure }
    }

    /// All pools by name.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolView> {
        self.shared.pools.all().iter().map(|pool| self.pool_view(pool)).collect()
    }

    /// One pool.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn pool(&self, name: &str) -> Result<PoolView, ServiceError> {
        self.shared.pools.find(name).map(|pool| self.pool_view(&pool))
    }

    /// Changes the sizes of a pool; it grows or shrinks in the background.
    ///
    /// # Errors
    /// Sizes that cannot be; nothing is changed then.
    pub async fn resize_pool(&self, name: &str, change: PoolChange) -> Result<PoolView, ServiceError> {
        let pool = self.shared.pools.find(name)?;
        let mut record = pool.lock().record.clone();
        record.min = change.min.unwrap_or(record.min);
        record.max = change.max.unwrap_or(record.max);
        record.max_age_seconds = change.max_age_seconds.unwrap_or(record.max_age_seconds);
        self.check_sizes(&record)?;
        self.keep_record(&record).await?;
        pool.lock().record = record;
        pool.changed.notify_one();
        Ok(self.pool_view(&pool))
    }

    /// Removes a pool with the VMs that wait in it; those handed out stay.
    ///
    /// # Errors
    /// If there is none of that name, or the store fails; the pool stays then.
    pub async fn remove_pool(&self, name: &str) -> Result<(), ServiceError> {
        let pool = self.shared.pools.find(name)?;
        let name = pool.lock().record.name.clone();
        self.shared.ports.store.delete_document(DocumentKind::Pool, name.as_str()).await?;
        self.shared.pools.remove(&name);
        pool.ending.cancel();
        // Nothing is made for it any more.
        pool.ended.cancelled().await;
        let waiting: Vec<Waiting> = pool.lock().waiting.drain(..).collect();
        let mut outcome = Ok(());
        for Waiting { id, .. } in waiting {
            match self.delete_vm(&id.into()).await {
                // One that died meanwhile keeps nothing of the others.
                Ok(()) | Err(ServiceError::UnknownVm(_)) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}
