//! Making room: what nothing holds, removed or only listed.

use std::collections::HashSet;

use microvm_ports::storage::ImageInfo;
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::vm::LOCAL_TENANT;
use microvm_types::{Name, OperationName, Phase, SnapshotId, StoredKind, Unreadable, VmId};

use super::Host;
use crate::catalog::Catalog;
use crate::context::Context;
use crate::error::ServiceError;
use crate::golden::Goldens;
use crate::kept::KEEP_MEMORY_BYTES;
use crate::vm::shared::Shared;

/// How much of what nothing holds goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneExtent {
    /// Images without a name, golden snapshots of templates that are no more, and files that nothing names.
    Unused,
    /// Also whatever can be made or fetched again: images that no VM, snapshot, pool or template needs, all golden snapshots, memory of
    /// snapshots, fetched packages.
    All,
}

/// One thing that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prunable {
    /// Kind.
    pub kind: StoredKind,
    /// Its id: of an image the digest. `None`: files that have none.
    pub id: Option<String>,
    /// Its name, or what it is in words.
    pub name: String,
    /// Bytes on disk; `None`: those of the directory of this id.
    pub bytes: Option<u64>,
}

/// Outcome of [`Host::prune`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneOutcome {
    /// Everything that was removed.
    pub removed: Vec<Prunable>,
    /// What was to go and stays, with the reason of each.
    pub kept: Vec<Unreadable>,
}

/// What of the stored things is used, by the ids of their directories.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    /// All VMs with their names.
    pub vms: Vec<(VmId, Name, Phase)>,
    /// All snapshots with their names.
    pub snapshots: Vec<(SnapshotId, Name, SnapshotPurpose)>,
    /// Images.
    pub images: Vec<ImageInfo>,
    /// Digests of images that VMs, snapshots, pools or templates need.
    pub images_in_use: HashSet<String>,
}

impl Host {
    /// Names and uses of everything stored, for all tenants; `operation`: what they are asked for.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn holdings(&self, operation: OperationName) -> Result<Holdings, ServiceError> {
        self.context.authorise(operation)?;
        self.all_holdings().await
    }

    async fn all_holdings(&self) -> Result<Holdings, ServiceError> {
        let shared = &self.context.shared;
        let images = shared.ports.images.images().await?.found;
        let records = shared.registry.all().into_iter().map(|vm| vm.record());
        let snapshots = shared.snapshots.all().into_iter().map(|one| one.record);
        // Needed by name: a VM that is made next starts from what the name points to then.
        let templates = shared.templates();
        let pools = shared.pools.all();
        let pools = pools.iter().map(|pool| pool.lock().record.template.image.clone());
        let named: HashSet<String> =
            templates.templates.values().map(|template| template.image.clone()).chain(pools).collect();
        let is_named = |image: &&ImageInfo| {
            named.contains(&image.digest) || image.names.iter().any(|name| named.contains(name))
        };
        let mut images_in_use: HashSet<String> = images_of_users(shared).collect();
        images_in_use.extend(images.iter().filter(is_named).map(|image| image.digest.clone()));
        Ok(Holdings {
            vms: records.map(|record| (record.id.clone(), record.name.clone(), record.phase())).collect(),
            snapshots: snapshots.map(|record| (record.id, record.name, record.purpose)).collect(),
            images,
            images_in_use,
        })
    }

    /// Everything that [`Host::prune`] would remove now. What becomes unused by that only is not in it. `operation`: what it is asked
    /// for.
    ///
    /// # Errors
    /// As [`Host::prune`].
    pub async fn prunable(
        &self,
        extent: PruneExtent,
        operation: OperationName,
    ) -> Result<Vec<Prunable>, ServiceError> {
        self.context.authorise(operation)?;
        let shared = &self.context.shared;
        let goldens = Goldens::new(&self.server());
        let golden = |one: crate::state::Snapshot| Prunable {
            kind: StoredKind::GoldenSnapshots,
            id: Some(one.record.id.to_string()),
            name: one.record.description,
            bytes: Some(one.info.own_bytes),
        };
        let mut found: Vec<Prunable> =
            goldens.unneeded(extent == PruneExtent::All).await?.into_iter().map(golden).collect();
        let holdings = self.all_holdings().await?;
        found.extend(holdings.prunable_images(extent).map(prunable_image));
        let bytes = shared.ports.snapshots.count_snapshot_garbage(keep_memory(extent)).await?;
        found.extend(files(StoredKind::Memory, "memory and layers that nothing uses", bytes));
        Ok(found)
    }

    /// Removes what nothing holds. VMs, and snapshots that users took, stay whatever they take.
    ///
    /// # Errors
    /// Storage errors; [`ServiceError::UsersUnknown`] while there are VMs or snapshots whose images are not known. What was removed
    /// until then is gone.
    pub async fn prune(&self, extent: PruneExtent) -> Result<PruneOutcome, ServiceError> {
        self.context.authorise(OperationName::SYSTEM_PRUNE)?;
        let shared = &self.context.shared;
        let server = self.server();
        let (goldens, catalog) = (Goldens::new(&server), Catalog::new(&server));
        let mut outcome = PruneOutcome::default();
        let all = extent == PruneExtent::All;
        // Before anything goes: an error later would hide what went.
        catalog.require_known_users().await?;
        // Builds and creations use images and golden snapshots before anything is there that names them.
        let alone = shared.making.try_write().ok();
        if alone.is_none() {
            let reason = "images are built or VMs are created now: what they use cannot be told";
            outcome.kept.push(Unreadable::new("images and golden snapshots", reason));
        }
        for snapshot in goldens.unneeded(all && alone.is_some()).await? {
            let (id, name) = (snapshot.record.id.to_string(), snapshot.record.description.clone());
            match goldens.discard(snapshot).await {
                Ok(()) => outcome.removed.push(Prunable {
                    kind: StoredKind::GoldenSnapshots,
                    id: Some(id),
                    name,
                    bytes: None,
                }),
                Err(error) => outcome.kept.push(Unreadable::new(name, error)),
            }
        }
        if alone.is_some() {
            self.prune_images(&catalog, all, &mut outcome).await?;
        }
        drop(alone);
        let freed = shared.ports.snapshots.collect_snapshot_garbage(keep_memory(extent)).await?;
        outcome.removed.extend(files(StoredKind::Memory, "memory and layers that nothing uses", freed));
        if all {
            let freed = shared.ports.images.clear_package_cache().await?;
            outcome.removed.extend(files(StoredKind::PackageCache, "fetched packages", freed));
        }
        Ok(outcome)
    }

    async fn prune_images(
        &self,
        catalog: &Catalog,
        named: bool,
        outcome: &mut PruneOutcome,
    ) -> Result<(), ServiceError> {
        let images = &self.context.shared.ports.images;
        let before = self.all_holdings().await?;
        // This looks at names while no image can get one.
        catalog.collect_garbage().await?;
        if named {
            let in_use: Vec<String> = before.images_in_use.iter().cloned().collect();
            for image in before.prunable_images(PruneExtent::All).filter(|image| !image.names.is_empty()) {
                if let Err(error) = images.remove_image(&image.digest, &in_use).await {
                    outcome.kept.push(Unreadable::new(image.names.join(", "), error));
                }
            }
        }
        let left: HashSet<String> = images.images().await?.found.into_iter().map(|one| one.digest).collect();
        let gone = before.images.iter().filter(|image| !left.contains(&image.digest));
        outcome.removed.extend(gone.map(prunable_image));
        Ok(())
    }

    /// The server itself: this work is for all tenants.
    fn server(&self) -> Context {
        Context::server(&self.context.shared, LOCAL_TENANT)
    }
}

impl Holdings {
    fn prunable_images(&self, extent: PruneExtent) -> impl Iterator<Item = &ImageInfo> {
        self.images.iter().filter(move |image| {
            !self.images_in_use.contains(&image.digest)
                && (extent == PruneExtent::All || image.names.is_empty())
        })
    }
}

/// Digests of images that VMs and snapshots of users need, of every tenant. Golden snapshots are made anew.
fn images_of_users(shared: &Shared) -> impl Iterator<Item = String> {
    let mut snapshots = shared.snapshots.all();
    snapshots.retain(|one| !matches!(one.record.purpose, SnapshotPurpose::Golden { .. }));
    let of_snapshots = snapshots.into_iter().map(|one| one.record.image_digest);
    shared.registry.all().into_iter().map(|handle| handle.record().image_digest).chain(of_snapshots)
}

fn prunable_image(image: &ImageInfo) -> Prunable {
    let name = if image.names.is_empty() { image.digest.clone() } else { image.names.join(", ") };
    Prunable { kind: StoredKind::Images, id: Some(image.digest.clone()), name, bytes: None }
}

fn files(kind: StoredKind, name: &str, bytes: u64) -> Option<Prunable> {
    (bytes > 0).then(|| Prunable { kind, id: None, name: name.to_owned(), bytes: Some(bytes) })
}

const fn keep_memory(extent: PruneExtent) -> u64 {
    match extent {
        PruneExtent::Unused => KEEP_MEMORY_BYTES,
        PruneExtent::All => 0,
    }
}
