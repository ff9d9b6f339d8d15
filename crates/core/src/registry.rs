//! Who exists: ids, names, and the way to each actor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use microvm_types::{Name, VmId, VmRef};
use tokio::sync::{mpsc, watch};

use crate::activity::Activity;
use crate::actor::Command;
use crate::error::ServiceError;
use crate::view::Snapshot;

/// The way to one VM's actor.
#[derive(Clone)]
pub(crate) struct VmHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    pub(crate) activity: Arc<Activity>,
}

/// All VMs by id and by name. Locks are held for a look-up only, never across an await.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<VmId, VmHandle>,
    by_name: HashMap<Name, VmId>,
}

impl Registry {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic while holding the lock cannot leave the two maps half changed in a way that matters: go on.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a VM if its name is free and there is room for it.
    pub(crate) fn insert(
        &self,
        id: &VmId,
        name: &Name,
        handle: VmHandle,
        limit: usize,
    ) -> Result<(), ServiceError> {
        self.with(|inner| {
            if inner.by_name.contains_key(name) {
                return Err(microvm_ports::StateError::NameTaken(name.clone()).into());
            }
            if inner.by_id.len() >= limit {
                return Err(ServiceError::TooManyVms { limit });
            }
            inner.by_name.insert(name.clone(), id.clone());
            inner.by_id.insert(id.clone(), handle);
            Ok(())
        })
    }

    /// Takes a VM out.
    pub(crate) fn remove(&self, id: &VmId, name: &Name) {
        self.with(|inner| {
            inner.by_id.remove(id);
            if inner.by_name.get(name) == Some(id) {
                inner.by_name.remove(name);
            }
        });
    }

    /// Gives a VM another name if that is free.
    pub(crate) fn rename(&self, id: &VmId, from: &Name, to: &Name) -> Result<(), ServiceError> {
        self.with(|inner| {
            if from == to {
                return Ok(());
            }
            if inner.by_name.contains_key(to) {
                return Err(microvm_ports::StateError::NameTaken(to.clone()).into());
            }
            if inner.by_name.get(from) == Some(id) {
                inner.by_name.remove(from);
            }
            inner.by_name.insert(to.clone(), id.clone());
            Ok(())
        })
    }

    /// Finds a VM by id, then by name.
    pub(crate) fn find(&self, vm: &VmRef) -> Result<VmHandle, ServiceError> {
        self.with(|inner| {
            vm.as_id()
                .and_then(|id| inner.by_id.get(&id))
                .or_else(|| inner.by_name.get(vm.as_name()).and_then(|id| inner.by_id.get(id)))
                .cloned()
        })
        .ok_or_else(|| ServiceError::UnknownVm(vm.to_string()))
    }

    /// All VMs in order of creation (ids sort by time).
    pub(crate) fn all(&self) -> Vec<VmHandle> {
        let mut all: Vec<(VmId, VmHandle)> =
            self.with(|inner| inner.by_id.iter().map(|(id, handle)| (id.clone(), handle.clone())).collect());
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter().map(|(_, handle)| handle).collect()
    }
}
