//! Making store and reality agree when the server starts.

mod newest;

use std::collections::HashSet;
use std::sync::Arc;

use camino::Utf8PathBuf;
use microvm_ports::state::StoredVms;
use microvm_types::{Life, VmId};

use self::newest::Newest;
use crate::error::ServiceError;
use crate::events::Cause;
use crate::state::Demand;
use crate::vm;
use crate::vm::command::Beginning;
use crate::vm::shared::Shared;
use crate::vm::volumes;

/// The directory of a VM that no record knows and that has none itself. It is left alone: the record may be in another copy
/// of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayVm {
    /// Its id.
    pub id: VmId,
    /// Where its disk is.
    pub directory: Utf8PathBuf,
}

/// Ends and removes what interrupted creations left, then takes up every VM that the store or its own directory knows. Returns
/// when every VM has an actor; the actors adopt their machines at the same time, each on its own. One damaged row or one
/// stubborn directory does not keep the others from being served.
///
/// A whole VM that neither knows stays as it is, with its machine: that the store does not know it says something about the
/// store.
pub(crate) async fn reconcile(shared: &Arc<Shared>) -> Result<(), ServiceError> {
    let mut stored = shared.ports.store.vms().await?;
    for (id, reason) in &stored.unreadable {
        shared.unreadable.vms.add("VM", None, id, reason);
    }
    let known: HashSet<String> = stored
        .records
        .iter()
        .map(|record| record.id.to_string())
        .chain(stored.unreadable.iter().map(|(id, _)| id.clone()))
        .collect();
    // Listed before any actor begins: directories that actors make are none of the last server.
    let directories = shared.ports.vm_storage.vm_directories().await?;
    let mut newest = Newest::new(shared, &stored.records).await?;
    for record in &mut stored.records {
        if directories.contains(&record.id) {
            newest.take(record).await;
        }
    }
    for id in directories {
        if known.contains(id.as_str()) {
            continue;
        }
        match newest.unknown(&id).await {
            Ok(Some(record)) => stored.records.push(record),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(vm = %id, %error, "what an interrupted creation left could not be removed");
            }
        }
    }
    // Before the actors adopt: a machine that no record names could still write to a disk that one of them starts on.
    end_strays(shared, &stored).await;
    for mut record in stored.records {
        record.life = Life::stored(record.phase(), record.life.rest().cloned(), record.is_pools());
        // Before anybody can ask for one of them.
        volumes::note(shared, &record);
        // Counted, not limited: VMs that exist are kept even if the limits are lower now.
        let reservation = shared.reservations.existing(Demand::of(&record.template));
        vm::spawn(shared, record, Beginning::Adopt, &Cause::server(), reservation)?;
    }
    Ok(())
}

/// Ends machines that neither a database row nor a record in a directory names; machines that are named are adopted or swept
/// elsewhere. A whole VM without a row keeps its machine. A failure is logged only: a machine that is left over can touch
/// nobody's data, so the server can serve.
async fn end_strays(shared: &Shared, stored: &StoredVms) {
    let storage = &shared.ports.vm_storage;
    let found = async {
        let rows: HashSet<&VmId> = stored.records.iter().map(|record| &record.id).collect();
        let with_machine = stored.records.iter().filter(|record| record.machine.is_some());
        let mut known: HashSet<VmId> = with_machine.map(|record| record.id.clone()).collect();
        known.extend(stored.unreadable.iter().filter_map(|(id, _)| id.parse().ok()));
        known.extend(storage.vm_directories().await?.into_iter().filter(|id| !rows.contains(id)));
        // The parent of any directory of a VM: the port tells no other path.
        let any = storage.vm_directory(&shared.ports.new_vm_id());
        let Some(folder) = any.parent() else { return Ok(Vec::new()) };
        let mut ended = Vec::new();
        for driver in shared.ports.hypervisors.all() {
            ended.extend(driver.end_strays(folder, &known).await?);
        }
        Ok::<_, ServiceError>(ended)
    };
    match found.await {
        Ok(ended) => {
            for vm in ended {
                tracing::warn!(%vm, "ended a machine that no record told of");
            }
        }
        Err(error) => tracing::error!(%error, "machines that nothing tells of could not be looked for"),
    }
}

/// Finds VMs that have a disk and no record.
pub(crate) async fn strays(shared: &Shared) -> Result<Vec<StrayVm>, ServiceError> {
    let storage = &shared.ports.vm_storage;
    let mut strays = Vec::new();
    for id in storage.vm_directories().await? {
        // Looked up after the list was made: a VM that was being created is known by now, or unfinished.
        if shared.registry.by_id(&id).is_err() && !storage.is_unfinished(&id).await? {
            strays.push(StrayVm { directory: storage.vm_directory(&id), id });
        }
    }
    Ok(strays)
}
