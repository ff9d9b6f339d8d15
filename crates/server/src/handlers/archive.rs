//! Whole trees as tar streams.

use axum::Json;
use microvm_api::operation::{Archive, Data};
use microvm_api::operations::file;
use microvm_ports::Holes;
use microvm_types::files::TransferSummary;

use crate::body;
use crate::call::{Call, Upload};
use crate::failure::Failure;
use crate::handlers::uploads::{self, Cap};
use crate::limits::{OUTGOING, UPLOAD};
use crate::reply::Reply;
use crate::session::Session;

pub(crate) async fn pull(
    app: Session,
    Call { path: vm, query, charge, .. }: Call<file::Pull>,
) -> Result<Reply<Data<Archive>>, Failure> {
    let path = query.path.absolute()?;
    let exclude: Vec<Vec<u8>> = query.exclude.into_iter().map(|name| name.0).collect();
    let holes = if query.holes { Holes::Map } else { Holes::Zeros };
    charge.hold(OUTGOING)?;
    let guest = app.guest(&vm).await?;
    let archive = guest.pull_archive(&path, &exclude, holes).await?;
    Ok(body::outgoing_archive(archive, Some(guest)))
}

pub(crate) async fn push(
    app: Session,
    Call { path: vm, query, body: Upload { headers, data }, charge, .. }: Call<file::Push>,
) -> Result<Json<TransferSummary>, Failure> {
    let (path, owner) = (query.path.absolute()?, query.owner.map(|owner| owner.0));
    charge.hold(UPLOAD)?;
    let cap = Cap::announced(&app.bounds, &headers)?;
    let guest = app.guest(&vm).await?;
    uploads::admit(&app.bounds, &guest, &path).await?;
    let (data, sum) = body::incoming(&headers, data, app.limits.silence);
    let data = cap.on(data, |part| part.len() as u64);
    let pushed =
        guest.push_archive(&path, owner.as_ref(), data).await.map_err(|error| cap.blame_archive(error))?;
    Ok(Json(TransferSummary { left_out: pushed.left_out, ..sum.of(pushed.bytes).await? }))
}
