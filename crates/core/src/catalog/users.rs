//! Users of images. Golden snapshots are none that count: the server made them, and makes them again.

use microvm_ports::StorageError;
use microvm_types::snapshot::SnapshotPurpose;

use super::Catalog;
use crate::error::ServiceError;
use crate::golden::Goldens;
use crate::state::Snapshot;

/// Users that an error names.
const NAMED: usize = 5;

/// A VM or a snapshot that needs an image.
pub(super) struct User {
    /// Digest of the image.
    pub(super) digest: String,
    /// Kind and name, for people.
    name: String,
}

/// VMs and snapshots of all tenants that need their images.
pub(super) fn of(catalog: &Catalog) -> Vec<User> {
    let shared = &catalog.context.shared;
    let vms = shared.registry.all().into_iter().map(|handle| {
        let record = handle.record();
        User { digest: record.image_digest.clone(), name: format!("the VM `{}`", record.name) }
    });
    let snapshots = shared.snapshots.all().into_iter().filter(|one| !is_golden(one));
    let snapshots = snapshots.map(|one| User {
        name: match one.record.purpose {
            SnapshotPurpose::Hibernation => format!("the memory of the VM `{}`", one.record.vm_name),
            _ => format!("the snapshot `{}`", one.record.name),
        },
        digest: one.record.image_digest,
    });
    vms.chain(snapshots).collect()
}

/// Removes an image, with the golden snapshots that nothing but themselves hold it.
pub(super) async fn remove(catalog: &Catalog, reference: &str) -> Result<(), ServiceError> {
    // What cannot be read may need it, and has nothing but it to start from.
    catalog.require_known_users().await?;
    let images = &catalog.context.shared.ports.images;
    let refused = match images.remove_image(reference, &catalog.images_in_use()).await {
        Err(refused @ StorageError::InUse { .. }) => refused,
        other => return Ok(other?),
    };
    let found = images.images().await?.found;
    let found = found.into_iter().find(|info| {
        info.names.iter().any(|name| name == reference)
            || (reference.starts_with("sha256:") && info.digest.starts_with(reference))
    });
    let (Some(info), StorageError::InUse { name, users }) = (found, refused) else {
        return Err(StorageError::UnknownImage(reference.to_owned()).into());
    };
    let names: Vec<_> = of(catalog).into_iter().filter(|user| user.digest == info.digest).collect();
    if !names.is_empty() {
        return Err(StorageError::InUse { name, users: list(&names) }.into());
    }
    // Creations use golden snapshots before anything is there that names them.
    let Ok(_alone) = catalog.context.shared.making.try_write() else {
        let users = "VMs or images that are being made: wait for them".to_owned();
        return Err(StorageError::InUse { name, users }.into());
    };
    remove_goldens(catalog, &info.digest).await?;
    // A VM may have been made of it meanwhile.
    match images.remove_image(reference, &catalog.images_in_use()).await {
        Err(StorageError::InUse { name, .. }) => {
            let names: Vec<_> = of(catalog).into_iter().filter(|user| user.digest == info.digest).collect();
            let users = if names.is_empty() { users } else { list(&names) };
            Err(StorageError::InUse { name, users }.into())
        }
        other => Ok(other?),
    }
}

/// Removes the golden snapshots of images that have no name and that nothing else needs; returns the bytes freed.
pub(super) async fn remove_goldens_of_unnamed(catalog: &Catalog) -> Result<u64, ServiceError> {
    let images = catalog.context.shared.ports.images.images().await?;
    if !images.unreadable.is_empty() {
        // What a name that cannot be read stands for is not known; the store refuses to collect then.
        return Ok(0);
    }
    let mut freed = 0;
    for info in images.found {
        if info.names.is_empty() && !catalog.is_needed(&info.digest) {
            freed += remove_goldens(catalog, &info.digest).await?;
        }
    }
    Ok(freed)
}

async fn remove_goldens(catalog: &Catalog, digest: &str) -> Result<u64, ServiceError> {
    let mut freed = 0;
    let mut all = catalog.context.shared.snapshots.all();
    all.retain(|one| is_golden(one) && one.record.image_digest == digest);
    for snapshot in all {
        freed += snapshot.info.own_bytes;
        Goldens::new(&catalog.context).discard(snapshot).await?;
    }
    Ok(freed)
}

fn is_golden(snapshot: &Snapshot) -> bool {
    matches!(snapshot.record.purpose, SnapshotPurpose::Golden { .. })
}

fn list(users: &[User]) -> String {
    let shown: Vec<&str> = users.iter().take(NAMED).map(|user| user.name.as_str()).collect();
    let more = users.len().saturating_sub(NAMED);
    let shown = shown.join(", ");
    if more == 0 {
        format!("{shown}: remove them first")
    } else {
        format!("{shown} and {more} more: remove them first")
    }
}
