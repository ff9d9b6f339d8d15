//! All VMs by id and name, and the way to each actor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use microvm_ports::storage::LostDisks;
use microvm_types::vm::VmRecord;
use microvm_types::{Name, VmId, VmRef};
use tokio::sync::{mpsc, oneshot, watch};

use super::activity::Activity;
use super::command::{Command, Order, Reply};
use super::view::{Published, VmView};
use crate::error::ServiceError;
use crate::events::Cause;
use crate::state::GOLDEN_LABEL;

/// Fewest characters of an id that stand for it: of fewer a mistyped name would be one.
const PREFIX_MIN: usize = 4;
/// Most VMs that are named when an id is not clear.
const CANDIDATES: usize = 5;

/// The way to one VM's actor.
#[derive(Clone)]
pub(crate) struct VmHandle {
    pub(crate) commands: mpsc::Sender<Order>,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) activity: Arc<Activity>,
    /// Cause that commands over this handle are noted with.
    pub(crate) cause: Cause,
}

impl VmHandle {
    /// The handle with another cause.
    pub(crate) fn by(mut self, cause: &Cause) -> Self {
        self.cause = cause.clone();
        self
    }

    /// True unless the server made it for itself: it waits in a pool, or becomes a golden snapshot.
    fn is_users(&self) -> bool {
        let now = self.published.borrow();
        !now.record.is_pools() && !now.record.labels.contains_key(GOLDEN_LABEL)
    }

    /// The VM as it is now.
    pub(crate) fn view(&self) -> VmView {
        self.published.borrow().view()
    }

    /// Its record as it is now.
    pub(crate) fn record(&self) -> VmRecord {
        self.published.borrow().record.clone()
    }

    /// Sends a command to the actor and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, ServiceError>>) -> Command,
    ) -> Result<T, ServiceError> {
        let (reply, outcome) = oneshot::channel();
        let lost = || {
            let now = self.published.borrow();
            if now.gone() {
                ServiceError::UnknownVm(now.record.name.to_string())
            } else {
                ServiceError::ShuttingDown
            }
        };
        let order = Order { command: make(reply), cause: self.cause.clone() };
        // Waits while the queue is full: whoever sends faster than the actor works is slowed down, not refused.
        self.commands.send(order).await.map_err(|_| lost())?;
        // An actor that ends drops the replies of all orders that it did not carry out.
        outcome.await.map_err(|_| lost())?
    }

    /// Deletes the VM. One that is gone already is fine. `lost`: what becomes of writes to disks of the user's that cannot take
    /// them.
    pub(crate) async fn delete(&self, lost: LostDisks) -> Result<(), ServiceError> {
        match self.ask(|reply: Reply| Command::Delete { lost, reply }).await {
            Err(ServiceError::UnknownVm(_)) if self.published.borrow().gone() => Ok(()),
            other => other,
        }
    }
}

/// All VMs by id, and by tenant and name. Locks are held for a look-up only, never across an await.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<VmId, Entry>,
    by_name: HashMap<String, HashMap<Name, VmId>>,
}

/// A VM, its owner, which never changes, and its name.
struct Entry {
    tenant: String,
    name: Name,
    handle: VmHandle,
}

impl Inner {
    fn id_of(&self, tenant: &str, name: &Name) -> Option<&VmId> {
        self.by_name.get(tenant)?.get(name)
    }

    /// The only VM of a tenant whose id begins so. VMs that the server made for itself are not meant.
    fn by_prefix(&self, tenant: &str, vm: &VmRef) -> Result<&Entry, ServiceError> {
        let prefix = vm.as_str();
        let mut found: Vec<(&VmId, &Entry)> = Vec::new();
        if prefix.len() >= PREFIX_MIN {
            let begins = |(id, entry): &(&VmId, &Entry)| {
                id.as_str().starts_with(prefix) && entry.tenant == tenant && entry.handle.is_users()
            };
            found.extend(self.by_id.iter().filter(begins));
        }
        match found[..] {
            [] => Err(ServiceError::UnknownVm(prefix.to_owned())),
            [(_, entry)] => Ok(entry),
            _ => {
                found.sort_by_key(|(id, _)| *id);
                let shown = |(id, entry): &(&VmId, &Entry)| format!("{id} ({})", entry.handle.record().name);
                let mut candidates: Vec<String> = found.iter().take(CANDIDATES).map(shown).collect();
                if found.len() > CANDIDATES {
                    candidates.push(format!("and {} more", found.len() - CANDIDATES));
                }
                Err(ServiceError::AmbiguousVm {
                    prefix: prefix.to_owned(),
                    candidates: candidates.join(", "),
                })
            }
        }
    }

    fn is_taken(&self, tenant: &str, name: &Name) -> bool {
        self.id_of(tenant, name).is_some()
    }

    /// Frees the names of a VM but for `kept`.
    fn free_names(&mut self, tenant: &str, id: &VmId, kept: Option<&Name>) {
        let Some(names) = self.by_name.get_mut(tenant) else { return };
        names.retain(|name, of| of != id || Some(name) == kept);
        // A tenant without VMs leaves no entry: tenants come and go.
        if names.is_empty() {
            self.by_name.remove(tenant);
        }
    }
}

impl Registry {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic while holding the lock cannot leave the two maps half changed in a way that matters: go on.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a VM if its name is free.
    pub(crate) fn insert(&self, record: &VmRecord, handle: VmHandle) -> Result<(), ServiceError> {
        let VmRecord { id, name, tenant, .. } = record;
        self.with(|inner| {
            if inner.is_taken(tenant, name) {
                return Err(microvm_ports::StateError::NameTaken(name.clone()).into());
            }
            inner.by_name.entry(tenant.clone()).or_default().insert(name.clone(), id.clone());
            inner.by_id.insert(id.clone(), Entry { tenant: tenant.clone(), name: name.clone(), handle });
            Ok(())
        })
    }

    /// Takes a VM out.
    pub(crate) fn remove(&self, id: &VmId) {
        self.with(|inner| {
            if let Some(Entry { tenant, .. }) = inner.by_id.remove(id) {
                inner.free_names(&tenant, id, None);
            }
        });
    }

    /// Takes a further name for a VM if that is free. [`Registry::rename`] decides between the two.
    pub(crate) fn reserve_name(&self, id: &VmId, to: &Name) -> Result<(), ServiceError> {
        self.with(|inner| {
            let unknown = || ServiceError::UnknownVm(id.to_string());
            let Entry { tenant, name, .. } = inner.by_id.get(id).ok_or_else(unknown)?;
            let (tenant, is_same) = (tenant.clone(), name == to);
            if !is_same && inner.is_taken(&tenant, to) {
                return Err(microvm_ports::StateError::NameTaken(to.clone()).into());
            }
            // The VM has two names for a moment; whichever is kept, nobody else got it meanwhile.
            inner.by_name.entry(tenant).or_default().insert(to.clone(), id.clone());
            Ok(())
        })
    }

    /// Leaves a VM one of the names that it has; the others are free then.
    pub(crate) fn rename(&self, id: &VmId, to: &Name) {
        self.with(|inner| {
            let Some(entry) = inner.by_id.get_mut(id) else { return };
            entry.name = to.clone();
            let tenant = entry.tenant.clone();
            inner.free_names(&tenant, id, Some(to));
        });
    }

    /// True if a VM of the tenant has the name.
    pub(crate) fn is_taken(&self, tenant: &str, name: &Name) -> bool {
        self.with(|inner| inner.is_taken(tenant, name))
    }

    /// Finds a VM of a tenant by id, then by name, then by the first characters of its id.
    pub(crate) fn find(&self, tenant: &str, vm: &VmRef) -> Result<VmHandle, ServiceError> {
        self.with(|inner| {
            let of_tenant = |id: &VmId| inner.by_id.get(id).filter(|entry| entry.tenant == tenant);
            // An id first: a VM whose name is the id of another one must not hide that.
            let by_id = vm.as_id().and_then(|id| of_tenant(&id));
            let found = by_id.or_else(|| inner.id_of(tenant, vm.as_name()).and_then(of_tenant));
            found.map_or_else(|| inner.by_prefix(tenant, vm), Ok).map(|entry| entry.handle.clone())
        })
    }

    /// Finds a VM by its id, whoever owns it: for the server's own work.
    pub(crate) fn by_id(&self, id: &VmId) -> Result<VmHandle, ServiceError> {
        self.with(|inner| inner.by_id.get(id).map(|entry| entry.handle.clone()))
            .ok_or_else(|| ServiceError::UnknownVm(id.to_string()))
    }

    /// All VMs of all tenants in order of creation (ids sort by time).
    pub(crate) fn all(&self) -> Vec<VmHandle> {
        let mut all: Vec<(VmId, VmHandle)> = self
            .with(|inner| inner.by_id.iter().map(|(id, entry)| (id.clone(), entry.handle.clone())).collect());
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter().map(|(_, handle)| handle).collect()
    }

    /// All VMs of a tenant in order of creation.
    pub(crate) fn of(&self, tenant: &str) -> Vec<VmHandle> {
        let mut all = self.all();
        all.retain(|handle| handle.published.borrow().record.tenant == tenant);
        all
    }
}
