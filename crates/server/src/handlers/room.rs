//! Disk space, and making room.

use std::collections::BTreeMap;

use axum::Json;
use camino::Utf8Path;
use microvm_api::disk_usage::{DiskUsage, PruneSystem, PrunedItem, PrunedSystem, StoredItem, StoredPart};
use microvm_api::operations::system;
use microvm_core::{Holdings, Prunable, PruneExtent};
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::{ErrorKind, Phase, StoredKind, Unreadable, VmId};

use crate::call::Call;
use crate::disk_usage::{Found, look};
use crate::failure::Failure;
use crate::host;
use crate::session::Session;

pub(crate) async fn disk_usage(app: Session, _: Call<system::DiskUsage>) -> Result<Json<DiskUsage>, Failure> {
    let root = &app.settings.root;
    let holdings = app.services.host.holdings(app.operation).await?;
    let prunable = app.services.host.prunable(PruneExtent::All, app.operation).await?;
    let found = found(root).await?;
    let mut removable = priced(prunable, &found);
    removable.extend(lost_keys(&holdings, &found));
    removable.extend(packages(&found));
    let free_bytes = host::info(root, app.started.elapsed())?.disk.available;
    Ok(Json(DiskUsage {
        root: root.to_string(),
        bytes: found.values().sum(),
        reclaimable_bytes: removable.iter().map(|one| one.bytes).sum(),
        free_bytes,
        parts: parts(found, &holdings, &removable),
    }))
}

pub(crate) async fn prune(
    app: Session,
    Call { query: PruneSystem { all, dry_run }, .. }: Call<system::Prune>,
) -> Result<Json<PrunedSystem>, Failure> {
    let extent = if all { PruneExtent::All } else { PruneExtent::Unused };
    let (root, host) = (&app.settings.root, &app.services.host);
    // Before the look at the files: keys of a VM made in between come with its directory, so they are not taken for
    // lost.
    let holdings = host.holdings(app.operation).await?;
    let before = found(root).await?;
    let keys = lost_keys(&holdings, &before);
    let (mut removed, mut kept) = if dry_run {
        let mut removed = priced(host.prunable(extent, app.operation).await?, &before);
        removed.extend(packages(&before).filter(|_| all));
        (removed, Vec::new())
    } else {
        let outcome = host.prune(extent).await?;
        (priced(outcome.removed, &before), outcome.kept)
    };
    for key in keys {
        let path = root.join("ssh/vms").join(&key.name);
        match if dry_run { Ok(()) } else { tokio::fs::remove_dir_all(&path).await } {
            Ok(()) => removed.push(key),
            Err(error) => kept.push(Unreadable::new(path.as_str(), error)),
        }
    }
    let bytes = removed.iter().map(|one| one.bytes).sum();
    Ok(Json(PrunedSystem { removed, kept, bytes, dry_run }))
}

/// Everything below the root, by kind.
async fn found(root: &Utf8Path) -> Result<Found, Failure> {
    let failed = |reason: String| {
        Failure::new(ErrorKind::Internal, "root_unreadable", format!("{root} cannot be looked at: {reason}"))
    };
    let owned = root.to_owned();
    let looked = tokio::task::spawn_blocking(move || look(&owned)).await;
    looked.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// Things with their bytes on disk.
fn priced(things: Vec<Prunable>, found: &Found) -> Vec<PrunedItem> {
    let priced = |one: Prunable| {
        let place = if one.kind == StoredKind::GoldenSnapshots { StoredKind::Snapshots } else { one.kind };
        let known = |id: String| found.get(&(place, directory(&id).to_owned())).copied();
        let bytes = one.bytes.or_else(|| one.id.and_then(known)).unwrap_or(0);
        PrunedItem { kind: one.kind, name: one.name, bytes }
    };
    things.into_iter().map(priced).collect()
}

/// Keys of VMs that are deleted, by their ids.
fn lost_keys(holdings: &Holdings, found: &Found) -> Vec<PrunedItem> {
    let lost = |id: &str| {
        let known = holdings.vms.iter().any(|(vm, ..)| vm.as_str() == id);
        // A VM whose record cannot be read still has its directory.
        id.parse::<VmId>().is_ok() && !known && !found.contains_key(&(StoredKind::Vms, id.to_owned()))
    };
    let keys = found.iter().filter(|((kind, id), _)| *kind == StoredKind::SshKeys && lost(id));
    keys.map(|((kind, id), bytes)| PrunedItem { kind: *kind, name: id.clone(), bytes: *bytes }).collect()
}

/// Fetched packages, if there are any.
fn packages(found: &Found) -> impl Iterator<Item = PrunedItem> + use<> {
    let kind = StoredKind::PackageCache;
    let bytes = found.iter().filter(|((other, _), _)| *other == kind).map(|(_, bytes)| bytes).sum();
    (bytes > 0).then(|| PrunedItem { kind, name: "fetched packages".to_owned(), bytes }).into_iter()
}

/// Name and use of a stored thing.
struct Known {
    kind: StoredKind,
    name: String,
    active: bool,
}

/// Names and uses of what the engine knows, by place and directory.
fn names(holdings: &Holdings) -> BTreeMap<(StoredKind, String), Known> {
    let mut known = BTreeMap::new();
    let mut note = |place, id: &str, kind, name: String, active| {
        known.insert((place, id.to_owned()), Known { kind, name, active });
    };
    for (id, name, phase) in &holdings.vms {
        let rests = matches!(phase, Phase::Stopped | Phase::Failed | Phase::Hibernated);
        note(StoredKind::Vms, id.as_str(), StoredKind::Vms, name.to_string(), !rests);
        note(StoredKind::SshKeys, id.as_str(), StoredKind::SshKeys, name.to_string(), true);
    }
    for (id, name, purpose) in &holdings.snapshots {
        let (kind, active) = match purpose {
            SnapshotPurpose::Golden { .. } => (StoredKind::GoldenSnapshots, false),
            SnapshotPurpose::User | SnapshotPurpose::Hibernation => (StoredKind::Snapshots, true),
        };
        note(StoredKind::Snapshots, id.as_str(), kind, name.to_string(), active);
    }
    for image in &holdings.images {
        let name = if image.names.is_empty() { "-".to_owned() } else { image.names.join(", ") };
        let active = holdings.images_in_use.contains(&image.digest);
        note(StoredKind::Images, directory(&image.digest), StoredKind::Images, name, active);
    }
    known
}

/// Name of the directory of an image.
fn directory(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Everything found, by what it belongs to.
fn parts(found: Found, holdings: &Holdings, removable: &[PrunedItem]) -> Vec<StoredPart> {
    let known = names(holdings);
    let mut parts = BTreeMap::<StoredKind, StoredPart>::new();
    for ((place, id), bytes) in found {
        let named = known.get(&(place, id.clone()));
        let kind = named.map_or(place, |named| named.kind);
        let part = parts.entry(kind).or_insert_with(|| StoredPart {
            kind,
            count: 0,
            active: 0,
            bytes: 0,
            reclaimable_bytes: removable.iter().filter(|one| one.kind == kind).map(|one| one.bytes).sum(),
            items: Vec::new(),
        });
        // Of these kinds the engine knows each one; of others it keeps what it needs.
        let by_name = matches!(
            kind,
            StoredKind::Images | StoredKind::Vms | StoredKind::Snapshots | StoredKind::SshKeys
        );
        let cache = matches!(kind, StoredKind::BuildCache | StoredKind::PackageCache);
        let active = named.map_or(!by_name && !cache, |named| named.active);
        let name = named.map_or_else(|| id.clone(), |named| named.name.clone());
        part.count += 1;
        part.active += usize::from(active);
        part.bytes += bytes;
        part.items.push(StoredItem { id, name, bytes, active });
    }
    let mut parts: Vec<StoredPart> = parts.into_values().collect();
    for part in &mut parts {
        part.items.sort_by_key(|item| std::cmp::Reverse(item.bytes));
    }
    parts
}
