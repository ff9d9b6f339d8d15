//! Names of snapshots: reserved before they are written, and made up where nobody gave one.

use std::sync::Arc;

use microvm_types::snapshot::SnapshotRecord;
use microvm_types::{Name, SnapshotId};

use crate::error::ServiceError;
use crate::state::Snapshot;
use crate::undo::{self, Undo};
use crate::vm::shared::Shared;

/// A name that is taken for a snapshot; given back when dropped before the snapshot is there.
pub(crate) type ReservedName = Undo<(Arc<Shared>, String, Name)>;

/// Takes a name of a tenant.
pub(crate) fn reserve(shared: &Arc<Shared>, tenant: &str, name: &Name) -> Result<ReservedName, ServiceError> {
    shared.snapshots.reserve(tenant, name)?;
    let reserved = (Arc::clone(shared), tenant.to_owned(), name.clone());
    Ok(undo::unless_kept(reserved, |(shared, tenant, name)| shared.snapshots.release(&tenant, &name)))
}

/// Lists the snapshot that has the name now.
pub(crate) fn keep(name: ReservedName, snapshot: Snapshot) {
    let (shared, ..) = undo::keep(name);
    shared.snapshots.insert(snapshot);
}

/// True if a user gave it its name: limits of number and age are for snapshots with made-up names.
pub(crate) fn is_named(record: &SnapshotRecord) -> bool {
    made_up(&record.vm_name, &record.id).is_ok_and(|made_up| made_up != record.name)
}

/// The VM's name, shortened, and the last characters of the id.
pub(crate) fn made_up(vm: &Name, id: &SnapshotId) -> Result<Name, ServiceError> {
    let end = &id.as_str()[id.as_str().len() - 6..];
    let head: String = vm.as_str().chars().take(24).collect();
    format!("{}-{end}", head.trim_end_matches(['-', '_'])).parse().map_err(
        |error: microvm_types::NameError| ServiceError::Invalid { field: "name", reason: error.to_string() },
    )
}
