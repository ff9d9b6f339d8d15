//! Files of a guest. Paths come as percent-encoded bytes in the query.

use axum::Json;
use axum::extract::Extension;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use microvm_api::FILE_STAT_HEADER;
use microvm_api::files::{FileHash, ascii_json};
use microvm_ports::content::{self, ContentStream};
use microvm_types::VmRef;
use microvm_types::extents::MEDIA_TYPE;
use microvm_types::files::{FileOwner, FileStat, TransferSummary, WriteOptions};

use crate::body::{self, Sum};
use crate::charge::Charge;
use crate::extents;
use crate::extract::{Parameters, Vm};
use crate::failure::Failure;
use crate::limits::{OUTGOING, UPLOAD};
use crate::listed;
use crate::session::Session;

/// Deepest listing.
const DEPTH_MAX: u32 = 256;

pub(crate) async fn read(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
) -> Result<Response, Failure> {
    let path = query.path("path")?;
    let offset = query.0.value("offset", "a number of bytes")?.unwrap_or(0);
    let length = query.0.value("length", "a number of bytes")?;
    charge.hold(OUTGOING)?;
    let guest = app.services.vms.guest(&vm).await?;
    let (stat, data) = guest.read_file(&path, offset, length).await?;
    let headers = description(&stat, "application/octet-stream");
    Ok(body::outgoing(content::expanded(data), guest, headers))
}

/// The same with holes told by their length.
pub(crate) async fn read_extents(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
) -> Result<Response, Failure> {
    let path = query.path("path")?;
    charge.hold(OUTGOING)?;
    let guest = app.services.vms.guest(&vm).await?;
    let (stat, data) = guest.read_file(&path, 0, None).await?;
    Ok(body::outgoing(extents::encoded(data), guest, description(&stat, MEDIA_TYPE)))
}

fn description(stat: &FileStat, content_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // In visible ASCII, it is a value of a header.
    if let Ok(stat) = HeaderValue::from_str(&ascii_json(stat)) {
        headers.insert(HeaderName::from_static(FILE_STAT_HEADER), stat);
    }
    headers
}

pub(crate) async fn write(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
    headers: HeaderMap,
    data: axum::body::Body,
) -> Result<Json<TransferSummary>, Failure> {
    charge.hold(UPLOAD)?;
    let (data, sum) = body::incoming(&headers, data, app.limits.silence);
    write_content(&app, &vm, &query, content::of_bytes(data), sum).await
}

/// The same from a body that tells holes by their length.
pub(crate) async fn write_extents(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
    headers: HeaderMap,
    data: axum::body::Body,
) -> Result<Json<TransferSummary>, Failure> {
    charge.hold(UPLOAD)?;
    let (data, sum) = body::incoming(&headers, data, app.limits.silence);
    write_content(&app, &vm, &query, extents::decoded(data), sum).await
}

async fn write_content(
    app: &Session,
    vm: &VmRef,
    query: &Parameters,
    data: ContentStream,
    sum: Sum,
) -> Result<Json<TransferSummary>, Failure> {
    let path = query.path("path")?;
    let options = WriteOptions {
        mode: query.0.mode("mode")?,
        owner: owner(query)?,
        create_parents: query.0.flag("parents")?,
        modified: query.0.value("modified", "a decimal number of seconds since 1970")?,
    };
    let bytes = app.services.vms.guest(vm).await?.write_file(&path, &options, data).await?;
    Ok(Json(sum.of(bytes).await?))
}

/// Who gets what is written: `user[:group]`, or nothing for the user whom commands run as.
pub(crate) fn owner(query: &Parameters) -> Result<Option<FileOwner>, Failure> {
    let Some(bytes) = query.0.bytes("owner")? else { return Ok(None) };
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() <= 256 && !text.chars().any(char::is_control));
    let wrong = || {
        let shown: String = String::from_utf8_lossy(bytes).chars().take(80).collect();
        Failure::invalid(
            "query_invalid",
            format!("owner: `{shown}` is no user of a guest: write USER or USER:GROUP"),
        )
    };
    text.map(FileOwner::from_text).map(Some).ok_or_else(wrong)
}

pub(crate) async fn remove(app: Session, Vm(vm): Vm, query: Parameters) -> Result<StatusCode, Failure> {
    let (path, recursive) = (query.path("path")?, query.0.flag("recursive")?);
    app.services.vms.guest(&vm).await?.remove(&path, recursive).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn stat(app: Session, Vm(vm): Vm, query: Parameters) -> Result<Json<FileStat>, Failure> {
    let path = query.path("path")?;
    Ok(Json(app.services.vms.guest(&vm).await?.stat(&path).await?))
}

pub(crate) async fn list(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
) -> Result<Response, Failure> {
    let path = query.path("path")?;
    let depth = query.0.value("depth", "a number of levels")?.unwrap_or(1);
    if !(1..=DEPTH_MAX).contains(&depth) {
        let detail = format!("depth: {depth} is not possible, 1 to {DEPTH_MAX} levels are");
        return Err(Failure::invalid("query_invalid", detail));
    }
    let mut list = app.services.vms.guest(&vm).await?.list(&path, depth).await?;
    let entries = std::mem::take(&mut list.entries);
    listed::answer(&charge, &list, "entries", entries, |entry: &FileStat| {
        let bytes =
            [&entry.path_bytes, &entry.target_bytes].map(|bytes| bytes.as_ref().map_or(0, Vec::capacity));
        entry.path.capacity() + entry.target.as_ref().map_or(0, String::capacity) + bytes[0] + bytes[1]
    })
}

pub(crate) async fn hash(app: Session, Vm(vm): Vm, query: Parameters) -> Result<Json<FileHash>, Failure> {
    let path = query.path("path")?;
    let sha256 = app.services.vms.guest(&vm).await?.hash_file(&path).await?;
    Ok(Json(FileHash { sha256 }))
}

pub(crate) async fn make_directory(
    app: Session,
    Vm(vm): Vm,
    query: Parameters,
) -> Result<StatusCode, Failure> {
    let path = query.path("path")?;
    let (mode, parents) = (query.0.mode("mode")?.unwrap_or(0o755), query.0.flag("parents")?);
    let owner = owner(&query)?;
    app.services.vms.guest(&vm).await?.make_directory(&path, mode, parents, owner.as_ref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn rename(app: Session, Vm(vm): Vm, query: Parameters) -> Result<StatusCode, Failure> {
    let (from, to) = (query.path("from")?, query.path("to")?);
    app.services.vms.guest(&vm).await?.rename(&from, &to).await?;
    Ok(StatusCode::NO_CONTENT)
}
