//! Whole trees as tar streams.

use axum::Json;
use axum::extract::Extension;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use microvm_ports::Holes;
use microvm_types::files::TransferSummary;

use crate::body;
use crate::charge::Charge;
use crate::extract::{Parameters, Vm};
use crate::failure::Failure;
use crate::handlers::files::owner;
use crate::limits::{OUTGOING, UPLOAD};
use crate::session::Session;

pub(crate) async fn pull(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
) -> Result<Response, Failure> {
    let path = query.path("path")?;
    let exclude: Vec<Vec<u8>> = query.0.all("exclude").map(<[u8]>::to_vec).collect();
    let holes = if query.0.flag("holes")? { Holes::Map } else { Holes::Zeros };
    charge.hold(OUTGOING)?;
    let guest = app.services.vms.guest(&vm).await?;
    let archive = guest.pull_archive(&path, &exclude, holes).await?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(body::outgoing_archive(archive, guest, headers))
}

pub(crate) async fn push(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
    headers: HeaderMap,
    data: axum::body::Body,
) -> Result<Json<TransferSummary>, Failure> {
    let (path, owner) = (query.path("path")?, owner(&query)?);
    charge.hold(UPLOAD)?;
    let guest = app.services.vms.guest(&vm).await?;
    let (data, sum) = body::incoming(&headers, data, app.limits.silence);
    let pushed = guest.push_archive(&path, owner.as_ref(), data).await?;
    Ok(Json(TransferSummary { left_out: pushed.left_out, ..sum.of(pushed.bytes).await? }))
}
