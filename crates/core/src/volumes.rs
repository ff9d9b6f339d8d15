//! Named volumes as callers see them.

use microvm_types::volume::DEFAULT_VOLUME_MIB;
use microvm_types::{Name, OperationName, Unreadable, VolumeRecord};

use crate::admission;
use crate::context::Context;
use crate::error::ServiceError;
use crate::vm::shared::Shared;
use crate::vm::volumes::{create, remove, several, users};

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    /// Its record.
    pub record: VolumeRecord,
    /// Bytes that it takes on the disk of the host.
    pub used_bytes: u64,
    /// Names of the VMs that have it, running or not. Forks and restored VMs have copies of their own.
    pub vms: Vec<Name>,
}

/// Named volumes: disks with a file system that stay when VMs go.
#[derive(Debug, Clone)]
pub struct Volumes {
    context: Context,
}

/// Takes up the volumes that are on disk. One that cannot be read is told and left alone.
pub(crate) async fn load(shared: &Shared) -> Result<(), ServiceError> {
    let listed = shared.ports.volumes.volumes().await?;
    for one in listed.unreadable {
        shared.unreadable.volumes.add("volume", None, one.name, one.reason);
    }
    listed.found.into_iter().for_each(|record| shared.volumes.insert(record));
    Ok(())
}

impl Volumes {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }

    /// Creates a volume with an empty file system. `size_mib`: MiB; `None`: 10 GiB. Space is taken as it is used. If it fails, or if the
    /// future is dropped before it has ended, nothing is left of it.
    ///
    /// # Errors
    /// [`ServiceError::VolumeNameTaken`]; a size that cannot be; storage errors. Nothing is left then.
    pub async fn create(&self, name: &Name, size_mib: Option<u32>) -> Result<VolumeView, ServiceError> {
        self.context.authorise(OperationName::VOLUME_CREATE)?;
        let shared = &self.context.shared;
        let size_mib = size_mib.unwrap_or(DEFAULT_VOLUME_MIB);
        admission::check_volume_size(size_mib, &shared.settings.limits)?;
        let made = loop {
            match create(shared, &self.context.caller.tenant, name, size_mib).await {
                Err(ServiceError::VolumeNameTaken(_)) if !self.tell_if_there(name).await => {}
                made => break made?,
            }
        };
        let view = self.view(made.record().clone()).await?;
        made.keep();
        Ok(view)
    }

    /// All volumes in order of creation.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn list(&self) -> Result<Vec<VolumeView>, ServiceError> {
        self.context.authorise(OperationName::VOLUME_LIST)?;
        let mut all = Vec::new();
        for record in self.context.shared.volumes.of(&self.context.caller.tenant) {
            self.note_told(&record);
            all.extend(self.view_if_there(record).await?);
        }
        Ok(all)
    }

    /// Volumes that cannot be read, and those that share a name; they are left alone.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn unreadable(&self) -> Result<Vec<Unreadable>, ServiceError> {
        self.context.authorise(OperationName::VOLUME_LIST)?;
        let mut all = self.context.shared.unreadable.volumes.of(&self.context.caller.tenant);
        for record in self.context.shared.volumes.of(&self.context.caller.tenant) {
            if let Err(error) = self.find(record.name.as_str()) {
                all.push(Unreadable::new(record.id.as_str(), error));
            }
        }
        Ok(all)
    }

    /// One volume by name or id.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVolume`].
    pub async fn get(&self, volume: &str) -> Result<VolumeView, ServiceError> {
        self.context.authorise(OperationName::VOLUME_GET)?;
        let record = self.find(volume)?;
        self.note_told(&record);
        self.view(record).await
    }

    /// Removes a volume with all that is on it.
    ///
    /// # Errors
    /// [`ServiceError::VolumeHasVms`] while VMs or pools have it, running or not; [`ServiceError::VolumeUsersUnknown`];
    /// [`ServiceError::VolumeUnclear`] for a name that several have.
    pub async fn remove(&self, volume: &str) -> Result<(), ServiceError> {
        self.context.authorise(OperationName::VOLUME_REMOVE)?;
        remove(&self.context.shared, self.find(volume)?).await
    }

    /// Removes the volumes that no VM has; returns those, with the bytes that are free now.
    ///
    /// # Errors
    /// [`ServiceError::VolumeUsersUnknown`]; storage errors; some may be gone then.
    pub async fn prune(&self) -> Result<Vec<VolumeView>, ServiceError> {
        self.context.authorise(OperationName::VOLUME_PRUNE)?;
        let mut gone = Vec::new();
        for record in self.context.shared.volumes.of(&self.context.caller.tenant) {
            // Which of several with one name has the data is for people to say.
            if self.find(record.name.as_str()).is_err() {
                continue;
            }
            let Some(view) = self.view_if_there(record.clone()).await? else { continue };
            if !view.vms.is_empty() {
                continue;
            }
            match remove(&self.context.shared, record).await {
                Ok(()) => gone.push(view),
                // Somebody began to use it, or was first.
                Err(ServiceError::VolumeHasVms { .. } | ServiceError::UnknownVolume(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// Notes that somebody was told of a volume: it does not go any more with the creation that it was made for.
    fn note_told(&self, record: &VolumeRecord) {
        let shared = &self.context.shared;
        shared.volumes.note_told(shared.ports.volumes.volume_disk(&record.id).as_str());
    }

    /// Notes that somebody was told that a name is taken; false if it is not any more.
    async fn tell_if_there(&self, name: &Name) -> bool {
        let shared = &self.context.shared;
        // A removal that goes on is waited for.
        let _alone = shared.making_volumes.lock().await;
        match shared.volumes.named(&self.context.caller.tenant, name.as_str()) {
            Ok(Some(record)) => {
                self.note_told(&record);
                true
            }
            Ok(None) => false,
            Err(_) => true,
        }
    }

    fn find(&self, volume: &str) -> Result<VolumeRecord, ServiceError> {
        match self.context.shared.volumes.find(&self.context.caller.tenant, volume) {
            Ok(found) => found.ok_or_else(|| ServiceError::UnknownVolume(volume.to_owned())),
            Err(ids) => Err(volume.parse().map_or_else(
                |_| ServiceError::UnknownVolume(volume.to_owned()),
                |name| several(&name, &ids),
            )),
        }
    }

    /// A view; `None` if the volume has gone meanwhile.
    async fn view_if_there(&self, record: VolumeRecord) -> Result<Option<VolumeView>, ServiceError> {
        let id = record.id.clone();
        match self.view(record).await {
            Ok(view) => Ok(Some(view)),
            Err(error) => {
                // A removal that goes on is waited for: its files go first.
                let _alone = self.context.shared.making_volumes.lock().await;
                if self.context.shared.volumes.contains(&id) { Err(error) } else { Ok(None) }
            }
        }
    }

    async fn view(&self, record: VolumeRecord) -> Result<VolumeView, ServiceError> {
        let ports = &self.context.shared.ports;
        let used_bytes = ports.volumes.volume_usage(&record.id).await?;
        let vms = users(&self.context.shared, &ports.volumes.volume_disk(&record.id));
        Ok(VolumeView { record, used_bytes, vms })
    }
}
