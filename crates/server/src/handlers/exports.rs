//! Files of images and VMs for other programs.

use microvm_api::operation::{Archive, Data, ImageRef, Json};
use microvm_api::operations::{image, vm};
use microvm_api::vm::VmChanges;
use microvm_core::RootChanges;
use microvm_types::image::ChangedPath;

use crate::body;
use crate::call::Call;
use crate::failure::Failure;
use crate::limits::EXPORT;
use crate::listed;
use crate::reply::Reply;
use crate::session::Session;

pub(crate) async fn image(
    app: Session,
    Call { path: ImageRef(reference), charge, .. }: Call<image::Export>,
) -> Result<Reply<Data<Archive>>, Failure> {
    charge.hold(EXPORT)?;
    Ok(body::outgoing_files(app.services.exports.image(&reference).await?))
}

pub(crate) async fn vm(
    app: Session,
    Call { path: vm, charge, .. }: Call<vm::Export>,
) -> Result<Reply<Data<Archive>>, Failure> {
    charge.hold(EXPORT)?;
    Ok(body::outgoing_archive(app.services.exports.vm(&vm).await?, None))
}

pub(crate) async fn changes(
    app: Session,
    Call { path: vm, charge, .. }: Call<vm::Changes>,
) -> Result<Reply<Json<VmChanges>>, Failure> {
    let RootChanges { changes, left_out } = app.services.exports.changes(&vm).await?;
    let bare = VmChanges { changes: Vec::new(), left_out };
    listed::answer(&charge, &bare, "changes", changes, |changed: &ChangedPath| {
        changed.path.capacity() + changed.path_bytes.as_ref().map_or(0, Vec::capacity)
    })
}
