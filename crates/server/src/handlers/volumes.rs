//! Named volumes.

use axum::Json;
use microvm_api::operation::{Created, VolumeRef};
use microvm_api::operations::volume;
use microvm_api::volume::{PrunedVolumes, Volume, VolumeList};
use microvm_core::VolumeView;

use crate::call::Call;
use crate::failure::Failure;
use crate::reply::{Done, Reply};
use crate::session::Session;

fn shown(app: &Session, view: VolumeView) -> Volume {
    let VolumeView { record, used_bytes, vms } = view;
    Volume {
        id: record.id,
        name: record.name,
        size_mib: record.size_mib,
        used_bytes,
        vms,
        created_at: app.time(record.created_ms),
    }
}

pub(crate) async fn list(app: Session, _: Call<volume::List>) -> Result<Json<VolumeList>, Failure> {
    let all = app.services.volumes.list().await?;
    let unreadable = app.services.volumes.unreadable()?;
    Ok(Json(VolumeList { volumes: all.into_iter().map(|view| shown(&app, view)).collect(), unreadable }))
}

pub(crate) async fn create(
    app: Session,
    Call { body: wish, .. }: Call<volume::Create>,
) -> Result<Reply<Created<Volume>>, Failure> {
    let made = shown(&app, app.services.volumes.create(&wish.name, wish.size_mib).await?);
    let location = format!("/volumes/{}", made.name);
    Ok(Reply::created(made).at(&location))
}

pub(crate) async fn prune(app: Session, _: Call<volume::Prune>) -> Result<Json<PrunedVolumes>, Failure> {
    let gone = app.services.volumes.prune().await?;
    let freed_bytes = gone.iter().map(|view| view.used_bytes).sum();
    Ok(Json(PrunedVolumes { removed: gone.into_iter().map(|view| view.record.name).collect(), freed_bytes }))
}

pub(crate) async fn get(
    app: Session,
    Call { path: VolumeRef(name), .. }: Call<volume::Get>,
) -> Result<Json<Volume>, Failure> {
    Ok(Json(shown(&app, app.services.volumes.get(&name).await?)))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: VolumeRef(name), .. }: Call<volume::Remove>,
) -> Result<Done, Failure> {
    app.services.volumes.remove(&name).await?;
    Ok(Done)
}
