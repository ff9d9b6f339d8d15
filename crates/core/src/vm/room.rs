//! Whether there is room on the host's disk for VMs that grow.

use super::shared::Shared;
use crate::error::ServiceError;

/// Part of a disk that is kept at most, for small ones.
const SMALL_DISK_PART: u64 = 50;

/// Whether less than the reserve is free.
pub(crate) async fn is_short(shared: &Shared) -> Result<bool, ServiceError> {
    let space = shared.ports.vm_storage.space().await?;
    // Without a reserve there is still an end: that of the limit for all VMs is no error of a write.
    Ok(space.free < shared.settings.disk_reserve.min(space.total / SMALL_DISK_PART).max(1))
}
