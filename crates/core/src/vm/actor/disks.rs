//! Disks of the user's that a VM writes to: what branches put over them goes back into them.

use microvm_ports::storage::LostDisks;

use super::journal::Journal;
use crate::error::ServiceError;

/// Gives the user's disk files what the VM wrote since they were branched. The VM has no machine.
pub(super) async fn write_back(journal: &Journal, lost: LostDisks) -> Result<(), ServiceError> {
    // The usual case: without a disk of the user's the storage is not asked at all.
    if journal.record.template.extra_disks.iter().all(|disk| disk.read_only) {
        return Ok(());
    }
    let storage = &journal.shared.ports.vm_storage;
    storage.write_back(&journal.record.id, lost).await?;
    // Layers may be unreferenced now.
    journal.shared.litter.notify_one();
    Ok(())
}

/// Writes back at the end of a machine; what fails now is done before the next start, or at the removal.
pub(super) async fn write_back_or_log(journal: &Journal) {
    if let Err(error) = write_back(journal, LostDisks::Keep).await {
        tracing::warn!(vm = %journal.record.id, %error, "the VM keeps what it wrote to its disks until then");
    }
}
