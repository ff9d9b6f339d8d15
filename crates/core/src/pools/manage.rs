//! Making, changing and removing pools.

use std::collections::BTreeMap;
use std::sync::Arc;

use microvm_ports::DocumentKind;
use microvm_types::pool::{DEFAULT_AGE_SECONDS, PoolRecord};
use microvm_types::template::Overrides;
use microvm_types::vm::LOCAL_TENANT;
use microvm_types::{Name, OperationName, Phase, Unreadable};

use super::Pools;
use super::fill::keep_filled;
use crate::admission;
use crate::context::Context;
use crate::error::{Bound, ServiceError};
use crate::state::{Pool, Waiting};
use crate::vm::guard::{self, delete_in_background};
use crate::vm::shared::Shared;

/// A pool to be made.
#[derive(Debug, Clone)]
pub struct PoolRequest {
    /// Its name.
    pub name: Name,
    /// Template by name; `None`: the default one.
    pub template: Option<String>,
    /// Changes to the template.
    pub overrides: Overrides,
    /// Labels of its VMs, on top of the template's.
    pub labels: BTreeMap<String, String>,
    /// Free text of its VMs.
    pub metadata: BTreeMap<String, String>,
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

impl Pools {
    /// Takes up the pools of the last server with the VMs that wait in them; those of pools that are gone are removed.
    pub(crate) async fn load(&self) -> Result<(), ServiceError> {
        let stored = self.context.shared.ports.store.documents(DocumentKind::Pool).await?;
        for (name, reason) in &stored.unreadable {
            self.context.shared.unreadable.pools.add("pool", tenant_of(name), name, reason);
        }
        for (name, document) in stored.documents {
            match serde_json::from_value::<PoolRecord>(document) {
                Ok(record) => drop(self.add(record)?),
                Err(error) => {
                    self.context.shared.unreadable.pools.add("pool", tenant_of(&name), &name, error)
                }
            };
        }
        // Taken before the VMs are looked at: the VMs of such a pool are told apart from strays by it.
        let unreadable = self.context.shared.unreadable.pools.all();
        for handle in self.context.shared.registry.all() {
            let record = handle.record();
            let Some(member) = record.pool.clone().filter(|member| member.waiting) else { continue };
            match self.context.shared.pools.find(&record.tenant, member.pool.as_str()) {
                Ok(pool) if record.life.phase() == Phase::Pooled => {
                    pool.lock().waiting.push_back(Waiting { id: record.id, since_ms: record.created_ms });
                }
                // That a pool cannot be read does not mean that its VMs may be deleted.
                Err(_) if unreadable.iter().any(|pool| pool.name == key_of(&record.tenant, &member.pool)) => {
                }
                // One that was being made, or whose pool is gone.
                _ => delete_in_background(&self.context.shared, &record.id),
            }
        }
        // Not before: what the new server makes must not be taken for something that the last one left.
        for pool in self.context.shared.pools.all() {
            self.begin_to_fill(pool);
        }
        Ok(())
    }

    fn add(&self, record: PoolRecord) -> Result<Arc<Pool>, ServiceError> {
        let (tenant, name) = (record.tenant.clone(), record.name.clone());
        let pool = Pool::new(record, self.context.shared.ending.child_token());
        self.context.shared.pools.insert(&tenant, &name, Arc::clone(&pool))?;
        Ok(pool)
    }

    fn begin_to_fill(&self, pool: Arc<Pool>) {
        // What waits belongs to the tenant of the pool, whoever made it.
        let context = Context::server(&self.context.shared, &pool.lock().record.tenant);
        self.context.shared.actors.spawn(keep_filled(Self::new(&context), pool));
    }

    /// Makes a pool and begins to fill it.
    ///
    /// # Errors
    /// See [`ServiceError`]; what the template says is checked as for a VM.
    pub async fn create(&self, request: PoolRequest) -> Result<PoolView, ServiceError> {
        self.context.authorise(OperationName::POOL_CREATE)?;
        let settings = &self.context.shared.settings;
        let mut template = self.context.shared.template(request.template.as_deref())?.with(request.overrides);
        template.labels.extend(request.labels);
        admission::check(&template, &settings.limits)?;
        admission::check_labels(&template.labels)?;
        if let Some(mount) = template.volumes.iter().find(|mount| !mount.read_only) {
            let reason = format!(
                "`{}`: several VMs of a pool cannot write to one volume: attach it read-only",
                mount.name
            );
            return Err(ServiceError::Invalid { field: "volumes", reason });
        }
        self.context.shared.ports.images.image(&template.image).await?;
        let record = PoolRecord {
            name: request.name,
            tenant: self.context.caller.tenant.clone(),
            template,
            metadata: request.metadata,
            min: request.min,
            max: request.max,
            max_age_seconds: request.max_age_seconds.unwrap_or(DEFAULT_AGE_SECONDS),
            created_ms: self.context.shared.ports.clock.now_ms(),
        };
        self.check_sizes(&record)?;
        if self.find(record.name.as_str()).is_ok() {
            return Err(ServiceError::PoolNameTaken(record.name));
        }
        let key = document_key(&record);
        if let Some(unreadable) = self.unreadable_of(&key) {
            return Err(ServiceError::UnreadablePool { pool: record.name, reason: unreadable.reason });
        }
        // Stored before it is filled: VMs that no stored pool knows are removed by the next server.
        self.keep_record(&record).await?;
        let pool = self.add(record)?;
        self.begin_to_fill(Arc::clone(&pool));
        Ok(view(&self.context.shared, &pool))
    }

    fn check_sizes(&self, record: &PoolRecord) -> Result<(), ServiceError> {
        let limit = self.context.shared.settings.limits.max_vms;
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
                bound: Bound::Operator,
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
        Ok(self
            .context
            .shared
            .ports
            .store
            .put_document(DocumentKind::Pool, &document_key(record), &document)
            .await?)
    }

    /// All pools of the caller's tenant by name.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn list(&self) -> Result<Vec<PoolView>, ServiceError> {
        self.context.authorise(OperationName::POOL_LIST)?;
        let pools = self.context.shared.pools.of(&self.context.caller.tenant);
        Ok(pools.iter().map(|pool| view(&self.context.shared, pool)).collect())
    }

    /// One pool.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> Result<PoolView, ServiceError> {
        self.context.authorise(OperationName::POOL_GET)?;
        self.find(name).map(|pool| view(&self.context.shared, &pool))
    }

    /// Changes the sizes of a pool; it grows or shrinks in the background.
    ///
    /// # Errors
    /// Sizes that cannot be; nothing is changed then.
    pub async fn resize(&self, name: &str, change: PoolChange) -> Result<PoolView, ServiceError> {
        self.context.authorise(OperationName::POOL_RESIZE)?;
        let pool = self.find(name)?;
        let mut record = pool.lock().record.clone();
        record.min = change.min.unwrap_or(record.min);
        record.max = change.max.unwrap_or(record.max);
        record.max_age_seconds = change.max_age_seconds.unwrap_or(record.max_age_seconds);
        self.check_sizes(&record)?;
        self.keep_record(&record).await?;
        pool.lock().record = record;
        pool.changed.notify_one();
        Ok(view(&self.context.shared, &pool))
    }

    /// Removes a pool with the VMs that wait in it; those handed out stay.
    ///
    /// # Errors
    /// If there is none of that name, or the store fails; the pool stays then.
    pub async fn remove(&self, name: &str) -> Result<(), ServiceError> {
        self.context.authorise(OperationName::POOL_REMOVE)?;
        let pool = self.find(name)?;
        let record = pool.lock().record.clone();
        self.context.shared.ports.store.delete_document(DocumentKind::Pool, &document_key(&record)).await?;
        self.context.shared.pools.remove(&record.tenant, &record.name);
        // After the row is gone: from here on nothing can bring the pool back.
        pool.ending.cancel();
        // Nothing is made for it any more.
        pool.ended.cancelled().await;
        let waiting: Vec<Waiting> = pool.lock().waiting.drain(..).collect();
        let mut outcome = Ok(());
        for Waiting { id, .. } in waiting {
            match guard::delete(&self.context.shared, &id).await {
                // One that died meanwhile keeps nothing of the others.
                Ok(()) | Err(ServiceError::UnknownVm(_)) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Pools of the caller's tenant whose record could not be read when the engine began; the VMs that wait in them are left
    /// alone.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn unreadable(&self) -> Result<Vec<Unreadable>, ServiceError> {
        self.context.authorise(OperationName::POOL_LIST)?;
        Ok(self.context.shared.unreadable.pools.of(&self.context.caller.tenant))
    }

    fn unreadable_of(&self, key: &str) -> Option<Unreadable> {
        self.context.shared.unreadable.pools.all().into_iter().find(|one| one.name == key)
    }

    pub(super) fn find(&self, name: &str) -> Result<Arc<Pool>, ServiceError> {
        self.context.shared.pools.find(&self.context.caller.tenant, name)
    }
}

/// A pool as it is now.
pub(crate) fn view(shared: &Shared, pool: &Pool) -> PoolView {
    let inner = pool.lock();
    let (record, waiting, filling) = (inner.record.clone(), inner.waiting.len(), inner.filling);
    let failure = inner.failure.clone();
    drop(inner);
    let all = shared.registry.of(&record.tenant);
    let handed_out = all
        .iter()
        .filter(|handle| {
            let snapshot = handle.published.borrow();
            snapshot.record.pool.as_ref().is_some_and(|member| member.pool == record.name && !member.waiting)
        })
        .count();
    PoolView { record, waiting, filling, handed_out, failure }
}

/// What the record of a pool is stored under: its name, as before there were tenants, for those of the local user.
fn key_of(tenant: &str, name: &Name) -> String {
    if tenant == LOCAL_TENANT { name.to_string() } else { format!("{tenant}/{name}") }
}

/// Whose pool is stored under a key.
fn tenant_of(key: &str) -> Option<&str> {
    Some(key.split_once('/').map_or(LOCAL_TENANT, |(tenant, _)| tenant))
}

fn document_key(record: &PoolRecord) -> String {
    key_of(&record.tenant, &record.name)
}
