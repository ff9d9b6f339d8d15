//! The newest record of a VM: the row of the database, or the copy in the VM's directory.

use std::collections::HashSet;
use std::sync::Arc;

use microvm_ports::DocumentKind;
use microvm_types::pool::PoolRecord;
use microvm_types::vm::VmRecord;
use microvm_types::{Name, Phase, VmId};

use crate::creation::made_up_name;
use crate::error::ServiceError;
use crate::state::GOLDEN_LABEL;
use crate::vm::shared::Shared;

/// Finds the newest record of each VM.
pub(super) struct Newest<'a> {
    shared: &'a Arc<Shared>,
    /// Tenants and names that VMs have.
    names: HashSet<(String, Name)>,
    /// Tenants and names of pools.
    pools: HashSet<(String, Name)>,
}

impl<'a> Newest<'a> {
    /// `rows`: all records of the database.
    pub(super) async fn new(shared: &'a Arc<Shared>, rows: &[VmRecord]) -> Result<Self, ServiceError> {
        let names = rows.iter().map(|record| (record.tenant.clone(), record.name.clone())).collect();
        let pools = shared.ports.store.documents(DocumentKind::Pool).await?.documents.into_iter();
        let pools = pools.filter_map(|(_, pool)| serde_json::from_value::<PoolRecord>(pool).ok());
        let pools = pools.map(|pool| (pool.tenant, pool.name)).collect();
        Ok(Self { shared, names, pools })
    }

    /// Replaces a row by the copy in the VM's directory if that is newer: the row is of an older copy of the database. What is
    /// newer in the row, or was never kept, is kept in the directory.
    pub(super) async fn take(&mut self, row: &mut VmRecord) {
        let storage = &self.shared.ports.vm_storage;
        match storage.kept_record(&row.id).await {
            Ok(Some(kept)) if is_older(row, &kept) => {
                tracing::warn!(
                    vm = %row.id, row = row.generation, directory = kept.generation, phase = %kept.phase(),
                    "the database has an older record of this VM than its directory: an older copy of the database was put \
                     back, and the newer record is taken"
                );
                self.names.remove(&(row.tenant.clone(), row.name.clone()));
                *row = self.with_a_free_name(kept);
                if let Err(error) = self.shared.ports.store.update_vm(row).await {
                    tracing::warn!(vm = %row.id, %error, "its row stays older until its next change");
                }
            }
            Ok(Some(kept)) if kept.generation > row.generation => self.count_on(row, kept.generation).await,
            Ok(Some(kept)) if kept.generation == row.generation => {}
            Ok(_) if matches!(row.phase(), Phase::Creating | Phase::Deleting) => {}
            Ok(_) => {
                if let Err(error) = storage.keep_record(row).await {
                    tracing::warn!(vm = %row.id, %error, "an older copy of the database would not be known by this VM's directory");
                }
            }
            Err(error) => {
                tracing::error!(vm = %row.id, %error, "the row of this VM is believed, its directory cannot tell whether it is the newest");
            }
        }
    }

    /// Counts a row, which an older server stored and which is believed, beyond the copy in the VM's directory: that would be
    /// the newer one at the next start, if the next change of the row did not reach the directory.
    async fn count_on(&self, row: &mut VmRecord, kept: u64) {
        row.generation = kept.saturating_add(1);
        if let Err(error) = self.shared.ports.store.update_vm(row).await {
            tracing::warn!(vm = %row.id, %error, "its row counts as older than its directory until its next change");
        }
        let is_kept = !matches!(row.phase(), Phase::Creating | Phase::Deleting);
        if is_kept && let Err(error) = self.shared.ports.vm_storage.keep_record(row).await {
            tracing::warn!(vm = %row.id, %error, "this VM's directory keeps an older record until its next change");
        }
    }

    /// The record of a VM that no row knows: the copy in its directory, which is stored. `None`: there is none, and the VM is
    /// left as it is, with its disk and its machine; or it was what an interrupted creation left, and is removed.
    pub(super) async fn unknown(&mut self, id: &VmId) -> Result<Option<VmRecord>, ServiceError> {
        let shared = self.shared;
        let storage = &shared.ports.vm_storage;
        let kept = storage.kept_record(id).await.unwrap_or_else(|error| {
            tracing::error!(vm = %id, %error, "what the directory of this VM tells of it cannot be read");
            None
        });
        if kept.is_none() && storage.is_unfinished(id).await? {
            tracing::warn!(vm = %id, "removing what an interrupted creation left");
            let directory = storage.vm_directory(id);
            shared.ports.hypervisors.sweep(id, &directory).await?;
            storage.remove_vm_files(id).await?;
            return Ok(None);
        }
        let Some(record) = kept.filter(|record| self.has_an_owner(record)) else {
            let directory = storage.vm_directory(id);
            tracing::error!(vm = %id, %directory, "no record knows this VM: it is left as it is, with its disk; a copy of the database that knows it brings it back");
            return Ok(None);
        };
        let record = self.with_a_free_name(record);
        tracing::warn!(vm = %id, name = %record.name, phase = %record.phase(), "the database does not know this VM: it is taken up by the record in its directory");
        match self.shared.ports.store.insert_vm(&record).await {
            Ok(()) => Ok(Some(record)),
            Err(error) => {
                tracing::error!(vm = %id, %error, "its record cannot be stored: it is left as it is");
                Ok(None)
            }
        }
    }

    /// True if it belongs to somebody, or waits in a pool that is there; what is being made or removed belongs to nobody.
    fn has_an_owner(&self, record: &VmRecord) -> bool {
        let pool = record.pool.as_ref().filter(|member| member.waiting);
        pool.is_none_or(|member| self.pools.contains(&(record.tenant.clone(), member.pool.clone())))
            && !record.labels.contains_key(GOLDEN_LABEL)
            && !matches!(record.phase(), Phase::Creating | Phase::Deleting)
    }

    /// The record, under a name of its own if another VM has its name by now.
    fn with_a_free_name(&mut self, mut record: VmRecord) -> VmRecord {
        if self.names.contains(&(record.tenant.clone(), record.name.clone()))
            && let Ok(free) = made_up_name(record.id.as_str())
        {
            tracing::warn!(vm = %record.id, name = %record.name, now = %free, "another VM has its name: it gets a new one");
            record.name = free;
        }
        self.names.insert((record.tenant.clone(), record.name.clone()));
        record
    }
}

/// True if a row is of an older copy of the database than a copy in the VM's directory.
///
/// A row that counts lower is older. A row that counts 0 was stored by an older server, which drops the count, before or after
/// the copy was kept: of those two the one of the later epoch is newer, of one epoch the one whose machine has ended, and
/// between records that tell the same of the machine the clock decides: what differs then is what somebody changed without the
/// machine, such as a name, labels or limits.
fn is_older(row: &VmRecord, kept: &VmRecord) -> bool {
    if kept.generation <= row.generation {
        return false;
    }
    if row.generation > 0 {
        return true;
    }
    let age = |record: &VmRecord| (record.epoch, record.machine.is_none());
    age(kept).cmp(&age(row)).then(kept.updated_ms.cmp(&row.updated_ms)).is_ge()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(generation: u64, epoch: u64, machine: bool, updated_ms: i64) -> VmRecord {
        serde_json::from_value(serde_json::json!({
            "id": VmId::from_parts(1, 1), "name": "dev", "tenant": "local", "phase": "running", "failure": null,
            "template": { "name": "t", "image": "i" }, "image_digest": "", "labels": {}, "metadata": {},
            "limits": {}, "machine": machine.then_some(1), "epoch": epoch, "generation": generation,
            "created_ms": 1, "updated_ms": updated_ms, "started_ms": null,
        }))
        .unwrap_or_else(|error| panic!("a record: {error}"))
    }

    #[test]
    fn no_clock_decides_which_machine_a_vm_has() {
        let kept = record(7, 5, true, 1_000);
        for (row, older, why) in [
            (record(7, 5, true, 2_000), false, "it counts as high"),
            (record(6, 9, false, 2_000), true, "it counts lower"),
            (record(0, 6, true, 1), false, "started later, by a server whose clock was set back"),
            (record(0, 5, false, 1), false, "its machine has ended since, by the same server"),
            (record(0, 4, false, 2_000), true, "of an earlier epoch, by a clock that was ahead"),
            (record(0, 5, true, 999), true, "of the same machine, earlier"),
            (record(0, 5, true, 1_001), false, "of the same machine, later"),
        ] {
            assert_eq!(is_older(&row, &kept), older, "{why}");
        }
        let ended = record(7, 5, false, 1_000);
        assert!(is_older(&record(0, 5, true, 2_000), &ended), "the machine had ended when the copy was kept");
    }
}
