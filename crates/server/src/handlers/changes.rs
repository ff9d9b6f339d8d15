//! Names, labels, metadata and limits of VMs.

use axum::Json;
use microvm_api::operations::vm;
use microvm_api::vm::{UpdateVm, Vm};
use microvm_core::{LimitsChange, VmChange};

use crate::call::Call;
use crate::failure::Failure;
use crate::session::Session;

pub(crate) async fn rename(
    app: Session,
    Call { path: vm, body: request, .. }: Call<vm::Rename>,
) -> Result<Json<Vm>, Failure> {
    Ok(Json(app.vm(app.services.vms.rename(&vm, request.name).await?)))
}

pub(crate) async fn update(
    app: Session,
    Call { path: vm, body: UpdateVm { labels, metadata, limits }, .. }: Call<vm::Update>,
) -> Result<Json<Vm>, Failure> {
    let limits = LimitsChange {
        idle_seconds: limits.idle_seconds,
        lifetime_seconds: limits.lifetime_seconds,
        lifetime_left_seconds: limits.lifetime_left_seconds,
        pause_seconds: limits.pause_seconds,
        hibernate_seconds: limits.hibernate_seconds,
        ephemeral: limits.ephemeral,
    };
    let change = VmChange { name: None, labels, metadata, limits };
    Ok(Json(app.vm(app.services.vms.change(&vm, change).await?)))
}
