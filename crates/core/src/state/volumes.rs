//! Named volumes by id, and the VMs that use each right now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use microvm_types::{Name, VmId, VolumeId, VolumeRecord};

/// All volumes.
#[derive(Debug, Default)]
pub(crate) struct VolumeTable(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// By path of the disk.
    users: HashMap<String, BTreeMap<VmId, VolumeUse>>,
    /// Creations of VMs that are to have a disk and are not registered yet, by path of the disk.
    held: HashMap<String, usize>,
    /// Disks of volumes that nobody was told of yet, and that no VM has come up with.
    untold: HashSet<String>,
}

/// A VM's use of the disk of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeUse {
    /// Path of the disk.
    pub(crate) disk: String,
    /// Name of the volume.
    pub(crate) volume: Name,
    /// Name of the VM.
    pub(crate) vm: Name,
    pub(crate) writes: bool,
}

impl VolumeTable {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn insert(&self, record: VolumeRecord) {
        self.with(|inner| inner.volumes.insert(record.id.clone(), record));
    }

    pub(crate) fn remove(&self, id: &VolumeId) {
        self.with(|inner| inner.volumes.remove(id));
    }

    /// True if a volume is known.
    pub(crate) fn contains(&self, id: &VolumeId) -> bool {
        self.with(|inner| inner.volumes.contains_key(id))
    }

    /// A volume of a tenant by id or name.
    ///
    /// # Errors
    /// See [`Self::named`].
    pub(crate) fn find(&self, tenant: &str, reference: &str) -> Result<Option<VolumeRecord>, Vec<VolumeId>> {
        let owned = self.of(tenant);
        match owned.into_iter().find(|volume| volume.id.as_str() == reference) {
            Some(by_id) => Ok(Some(by_id)),
            None => self.named(tenant, reference),
        }
    }

    /// A volume of a tenant by name.
    ///
    /// # Errors
    /// The ids of all volumes of this name if there are several.
    pub(crate) fn named(&self, tenant: &str, name: &str) -> Result<Option<VolumeRecord>, Vec<VolumeId>> {
        let mut found = self.of(tenant);
        found.retain(|volume| volume.name.as_str() == name);
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(found.into_iter().map(|volume| volume.id).collect()),
        }
    }

    /// Adds a volume that nobody was told of yet.
    pub(crate) fn insert_untold(&self, record: VolumeRecord, disk: &str) {
        self.with(|inner| {
            inner.untold.insert(disk.to_owned());
            inner.volumes.insert(record.id.clone(), record);
        });
    }

    /// Marks a volume as known to somebody, or as gone.
    pub(crate) fn note_told(&self, disk: &str) {
        self.with(|inner| inner.untold.remove(disk));
    }

    /// True if nobody was told of a volume yet.
    pub(crate) fn is_untold(&self, disk: &str) -> bool {
        self.with(|inner| inner.untold.contains(disk))
    }

    /// Counts a creation of a VM that is to have a disk.
    pub(crate) fn hold(&self, disk: &str) {
        self.with(|inner| *inner.held.entry(disk.to_owned()).or_default() += 1);
    }

    /// Ends what [`Self::hold`] began.
    pub(crate) fn let_go(&self, disk: &str) {
        self.with(|inner| {
            if let Some(count) = inner.held.get_mut(disk) {
                *count -= 1;
                if *count == 0 {
                    inner.held.remove(disk);
                }
            }
        });
    }

    /// True while a VM is being created that is to have a disk.
    pub(crate) fn is_held(&self, disk: &str) -> bool {
        self.with(|inner| inner.held.contains_key(disk))
    }

    /// All of a tenant, in order of creation.
    pub(crate) fn of(&self, tenant: &str) -> Vec<VolumeRecord> {
        self.with(|inner| inner.volumes.values().filter(|volume| volume.tenant == tenant).cloned().collect())
    }

    /// Has a VM use disks: all of them, or none if another VM writes to one, or uses one that this VM is to write to.
    ///
    /// # Errors
    /// The use by another VM that forbids it.
    pub(crate) fn take(&self, vm: &VmId, uses: &[VolumeUse]) -> Result<(), VolumeUse> {
        self.with(|inner| {
            for wanted in uses {
                let others = inner.users.get(&wanted.disk).into_iter().flatten();
                let hinders =
                    |(id, other): &(&VmId, &VolumeUse)| *id != vm && (wanted.writes || other.writes);
                if let Some((_, other)) = others.clone().find(hinders) {
                    return Err(other.clone());
                }
            }
            inner.note(vm, uses);
            Ok(())
        })
    }

    /// Notes uses of a VM that an earlier server allowed.
    pub(crate) fn note(&self, vm: &VmId, uses: &[VolumeUse]) {
        self.with(|inner| inner.note(vm, uses));
    }

    /// Ends all uses of a VM.
    pub(crate) fn release(&self, vm: &VmId) {
        self.with(|inner| {
            inner.users.retain(|_, users| {
                users.remove(vm);
                !users.is_empty()
            });
        });
    }
}

impl Inner {
    fn note(&mut self, vm: &VmId, uses: &[VolumeUse]) {
        for one in uses {
            self.users.entry(one.disk.clone()).or_default().insert(vm.clone(), one.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_use(disk: &str, vm: &str, writes: bool) -> VolumeUse {
        let name = |text: &str| text.parse().unwrap_or_else(|error| panic!("{error}"));
        VolumeUse { disk: disk.to_owned(), volume: name("data"), vm: name(vm), writes }
    }

    #[test]
    fn one_writes_or_many_read_and_all_of_a_vm_or_nothing() {
        let table = VolumeTable::default();
        let ids: Vec<VmId> = (1..=3).map(|number| VmId::from_parts(number, number)).collect();
        table.take(&ids[0], &[a_use("/a", "one", false)]).unwrap();
        table.take(&ids[1], &[a_use("/a", "two", false)]).unwrap();
        let refused = table.take(&ids[2], &[a_use("/b", "three", true), a_use("/a", "three", true)]);
        assert_eq!(refused.unwrap_err().vm.as_str(), "one");
        table.take(&ids[0], &[a_use("/b", "one", true)]).unwrap();
        assert_eq!(table.take(&ids[2], &[a_use("/b", "three", false)]).unwrap_err().vm.as_str(), "one");
        // What a VM has it may take again.
        table.take(&ids[0], &[a_use("/b", "one", true)]).unwrap();
        table.release(&ids[0]);
        table.take(&ids[2], &[a_use("/b", "three", true)]).unwrap();
        assert_eq!(table.take(&ids[2], &[a_use("/a", "three", true)]).unwrap_err().vm.as_str(), "two");
    }
}
