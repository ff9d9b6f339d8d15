//! Snapshots, restores and forks.

use std::time::Duration;

use axum::Json;
use axum::http::HeaderName;
use microvm_api::Problem;
use microvm_api::milliseconds::Milliseconds;
use microvm_api::operation::{Array, Created, CreatedOrAccepted, Lines, SnapshotRef, SnapshotVm};
use microvm_api::operations::{snapshot, vm};
use microvm_api::progress::ProgressLine;
use microvm_api::queries::CleanUpSnapshots;
use microvm_api::snapshot::{
    BegunSnapshot, Cleaned, Forked, Restored, Snapshot as SnapshotBody, SnapshotList, SnapshotStatistics,
    SnapshotsOfVm, Verification,
};
use microvm_core::{ForkRequest, RestoreRequest, Snapshot, SnapshotFilter, SnapshotRequest};
use microvm_ports::Progress;
use microvm_types::vm::NewVm;
use microvm_types::{Action, ErrorKind, VmRef};

use crate::call::Call;
use crate::convert;
use crate::failure::Failure;
use crate::handlers::images::absolute;
use crate::lines::progress;
use crate::reply::{Done, Reply};
use crate::session::Session;

const SECONDS_PER_DAY: u64 = 86_400;

pub(crate) async fn fork(
    app: Session,
    Call { path: vm, body: wish, .. }: Call<vm::Fork>,
) -> Result<Reply<Created<Forked>>, Failure> {
    let request = ForkRequest {
        count: wish.count,
        name: wish.name,
        vm: NewVm { labels: wish.labels, metadata: wish.metadata, limits: wish.limits },
    };
    let forked = app.services.branches.fork(&vm, request).await?;
    let body = Forked {
        vms: forked.vms.into_iter().map(|view| app.vm(view)).collect(),
        pause_ms: Milliseconds::from(forked.times.pause),
        changed_bytes: forked.changed_bytes,
        duration_ms: Milliseconds::from(forked.duration),
    };
    Ok(Reply::created(body))
}

pub(crate) async fn list(
    app: Session,
    Call { query, .. }: Call<snapshot::List>,
) -> Result<Json<SnapshotList>, Failure> {
    let vm = match query.vm {
        Some(text) => {
            Some(app.services.snapshots.vm_of(app.operation, &String::from_utf8_lossy(&text.0).parse()?)?)
        }
        None => None,
    };
    let golden = query.golden;
    let found = app.services.snapshots.list(&SnapshotFilter { vm, golden })?;
    Ok(Json(SnapshotList {
        snapshots: found.into_iter().map(|snapshot| app.snapshot(snapshot)).collect(),
        unreadable: app.services.snapshots.unreadable()?,
    }))
}

pub(crate) async fn of_vm(
    app: Session,
    Call { path: vm, .. }: Call<snapshot::OfVm>,
) -> Result<Reply<Array<SnapshotBody>>, Failure> {
    let filter =
        SnapshotFilter { vm: Some(app.services.snapshots.vm_of(app.operation, &vm)?), golden: false };
    let found = app.services.snapshots.list(&filter)?.into_iter().map(|snapshot| app.snapshot(snapshot));
    let found = Reply::array(found.collect());
    // A plain array has no place for those that cannot be read: a header tells how many.
    Ok(match app.services.snapshots.unreadable()?.len() {
        0 => found,
        count => found.with(HeaderName::from_static(microvm_api::UNREADABLE_HEADER), count),
    })
}

pub(crate) async fn create(
    app: Session,
    Call { path: vm, query, body: wish, .. }: Call<snapshot::Create>,
) -> Result<Reply<CreatedOrAccepted<SnapshotBody, BegunSnapshot>>, Failure> {
    if wish.full && query.incremental == Some(true) {
        let detail =
            "incremental: it is true, and `full` of the body says the opposite: leave one of them out";
        return Err(Failure::invalid("query_invalid", detail));
    }
    let full = wish.full || query.incremental == Some(false);
    let request = SnapshotRequest { name: wish.name, description: wish.description, full };
    if !wish.wait {
        let begun = app.services.branches.begin_snapshot(&vm, request).await?;
        let body =
            BegunSnapshot { id: begun.id, name: begun.name, pause_ms: Milliseconds::from(begun.pause) };
        return Ok(Reply::accepted(body));
    }
    let snapshot = app.services.branches.snapshot(&vm, request, Progress::ignored()).await?;
    let body = app.snapshot(snapshot);
    let location = format!("/snapshots/{}/{}", body.vm, body.id);
    Ok(Reply::created(body).at(&location).or_accepted())
}

/// The snapshot of a path, which must be of the VM in the path.
fn find(app: &Session, vm: &str, snapshot: &str) -> Result<Snapshot, Failure> {
    let asked: VmRef = vm.parse()?;
    let (found, is_of_vm) = app.services.snapshots.find_of(app.operation, &asked, snapshot)?;
    if is_of_vm || vm == SnapshotVm::ANY {
        return Ok(found);
    }
    let told = format!("`{vm}` has no snapshot `{snapshot}`, it is one of `{}`", found.record.vm_name);
    let problem = Problem::new(ErrorKind::NotFound, "snapshot_not_found", told);
    Err(Failure(Box::new(problem.with_remedies(vec![Action::RestoreSnapshot.of(snapshot)]))))
}

pub(crate) async fn get(
    app: Session,
    Call { path: (SnapshotVm(vm), SnapshotRef(snapshot)), .. }: Call<snapshot::Get>,
) -> Result<Json<SnapshotBody>, Failure> {
    Ok(Json(app.snapshot(find(&app, &vm, &snapshot)?)))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: (SnapshotVm(vm), SnapshotRef(snapshot)), query, .. }: Call<snapshot::Remove>,
) -> Result<Done, Failure> {
    let found = match find(&app, &vm, &snapshot) {
        Ok(found) => found,
        // One that cannot be read is in no list, so `find` knows nothing of it; it must not stay for ever.
        Err(_) if app.services.snapshots.remove_unreadable(&snapshot).await? => return Ok(Done),
        Err(error) => return Err(error),
    };
    app.services.snapshots.remove(found.record.id.as_str(), query.cascade).await?;
    Ok(Done)
}

pub(crate) async fn restore(
    app: Session,
    Call { path: (SnapshotVm(vm), SnapshotRef(snapshot)), body: wish, .. }: Call<snapshot::Restore>,
) -> Result<Json<Restored>, Failure> {
    let found = find(&app, &vm, &snapshot)?;
    let id = found.record.id.as_str();
    let views = if wish.in_place {
        // The VM as the caller names it: the snapshot may be of an earlier VM of that name.
        let named: Option<VmRef> = (vm != SnapshotVm::ANY).then(|| vm.parse().ok()).flatten();
        let vm = named.unwrap_or_else(|| found.record.vm.clone().into());
        vec![app.services.branches.rollback(&vm, id).await?]
    } else {
        let request = RestoreRequest {
            count: wish.count,
            name: wish.name,
            vm: NewVm { labels: wish.labels, metadata: wish.metadata, limits: wish.limits },
        };
        app.services.branches.restore(id, request).await?
    };
    let names: Vec<&str> = views.iter().map(|view| view.record.name.as_str()).collect();
    let message = format!("{} restored from snapshot {}", names.join(", "), found.record.name);
    Ok(Json(Restored { message, vms: views.into_iter().map(|view| app.vm(view)).collect() }))
}

pub(crate) async fn verify(
    app: Session,
    Call { path: (SnapshotVm(vm), SnapshotRef(snapshot)), .. }: Call<snapshot::Verify>,
) -> Result<Json<Verification>, Failure> {
    let found = find(&app, &vm, &snapshot)?;
    let verified = app.services.snapshots.verify(found.record.id.as_str(), Progress::ignored()).await?;
    let damage = verified.damage;
    let valid = damage.is_empty();
    let words: Vec<String> = damage.iter().map(convert::damage_text).collect();
    Ok(Json(Verification {
        valid,
        current_checksum: verified.current_sha256,
        // As it was read beside the other; that in memory may be of a moment earlier.
        stored_checksum: verified.stored_sha256.unwrap_or(found.info.sha256),
        size_bytes: found.info.own_bytes,
        error: (!valid).then(|| words.join("; ")),
        damage: damage.into_iter().map(convert::damage).collect(),
    }))
}

pub(crate) async fn cleanup(
    app: Session,
    Call { query, .. }: Call<snapshot::CleanUp>,
) -> Result<Json<Cleaned>, Failure> {
    let CleanUpSnapshots { days_old: days, older_than_seconds: seconds, keep, named } = query;
    let seconds = seconds.or(days.map(|days| days.saturating_mul(SECONDS_PER_DAY)));
    let snapshots = &app.services.snapshots;
    let age = seconds.map(Duration::from_secs);
    let pruned = if age.is_none() && keep.is_none() && !named {
        // Nothing is said: what the server does by itself once a day.
        snapshots.prune_old().await?
    } else if age.is_none() && keep.is_none() {
        let detail = "named: say which named ones are to go, with days_old=N, older_than_seconds=N or keep=N";
        return Err(Failure::invalid("query_invalid", detail));
    } else {
        snapshots.prune(keep, age, named).await?
    };
    let mut message = format!("{} snapshots removed", pruned.removed.len());
    if !pruned.kept.is_empty() {
        message.push_str(&format!(", {} could not be removed", pruned.kept.len()));
    }
    Ok(Json(Cleaned { message, removed: pruned.removed, kept: pruned.kept }))
}

pub(crate) async fn statistics(
    app: Session,
    _: Call<snapshot::Statistics>,
) -> Result<Json<SnapshotStatistics>, Failure> {
    let all = app.services.snapshots.statistics()?;
    Ok(Json(SnapshotStatistics {
        total_snapshots: all.count,
        golden_snapshots: all.golden,
        total_size_bytes: all.bytes,
        golden_size_bytes: all.golden_bytes,
        hibernation_size_bytes: all.hibernation_bytes,
        vms_with_snapshots: all.vms.len(),
        vms: all
            .vms
            .into_iter()
            .map(|(id, of_vm)| {
                let (snapshots, size_bytes) = (of_vm.count, of_vm.bytes);
                (id.to_string(), SnapshotsOfVm { vm_name: of_vm.name, snapshots, size_bytes })
            })
            .collect(),
        oldest_snapshot: all.oldest_ms.map(|time| app.time(time)),
        newest_snapshot: all.newest_ms.map(|time| app.time(time)),
        unreadable_snapshots: app.services.snapshots.unreadable()?.len(),
    }))
}

pub(crate) async fn export(
    app: Session,
    Call { path: (SnapshotVm(vm), SnapshotRef(snapshot)), body: file, .. }: Call<snapshot::Export>,
) -> Result<Reply<Lines<ProgressLine>>, Failure> {
    let id = find(&app, &vm, &snapshot)?.record.id;
    let path = absolute(&file.path)?;
    Ok(progress(move |progress| async move {
        let bytes = app.services.snapshots.export(id.as_str(), &path, progress).await?;
        Ok(ProgressLine::Exported { path: path.into_string(), bytes })
    }))
}

pub(crate) async fn import(
    app: Session,
    Call { body: file, .. }: Call<snapshot::Import>,
) -> Result<Reply<Lines<ProgressLine>>, Failure> {
    let path = absolute(&file.path)?;
    let name = file.name.ok_or_else(|| {
        Failure::invalid("body_invalid", "`name` is missing: what the snapshot is to be called")
    })?;
    Ok(progress(move |progress| async move {
        let snapshot = app.services.snapshots.import(name, &path, progress).await?;
        Ok(ProgressLine::Snapshot { snapshot: app.snapshot(snapshot) })
    }))
}
