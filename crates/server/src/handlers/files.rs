//! Files of a guest. Paths come as percent-encoded bytes in the query.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use microvm_api::FILE_STAT_HEADER;
use microvm_api::files::{FileHash, FileList, ascii_json};
use microvm_api::operation::{self, Bytes, Data, Extents};
use microvm_api::operations::file;
use microvm_api::queries::WriteFile;
use microvm_ports::content::{self, ContentStream};
use microvm_types::VmRef;
use microvm_types::extents::Content;
use microvm_types::files::{FileStat, TransferSummary, WriteOptions};

use crate::body::{self, Sum};
use crate::call::{Call, Upload};
use crate::extents;
use crate::failure::Failure;
use crate::handlers::uploads::{self, Cap};
use crate::limits::{OUTGOING, UPLOAD};
use crate::listed;
use crate::reply::{Done, Reply};
use crate::session::Session;

/// Deepest listing.
const DEPTH_MAX: u32 = 256;

pub(crate) async fn read(
    app: Session,
    Call { path: vm, query, charge, .. }: Call<file::Read>,
) -> Result<Reply<Data<Bytes>>, Failure> {
    let (path, offset, length) = (query.path.absolute()?, query.offset, query.length);
    // Before the guest is asked: what is refused for want of memory costs it nothing.
    charge.hold(OUTGOING)?;
    let guest = app.guest(&vm).await?;
    let (stat, data) = guest.read_file(&path, offset, length).await?;
    Ok(body::outgoing(content::expanded(data), guest, description(&stat)))
}

/// The same with holes told by their length.
pub(crate) async fn read_extents(
    app: Session,
    Call { path: vm, query, charge, .. }: Call<file::ReadExtents>,
) -> Result<Reply<Data<Extents>>, Failure> {
    let path = query.path.absolute()?;
    charge.hold(OUTGOING)?;
    let guest = app.guest(&vm).await?;
    let (stat, data) = guest.read_file(&path, 0, None).await?;
    Ok(body::outgoing(extents::encoded(data), guest, description(&stat)))
}

fn description(stat: &FileStat) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // In visible ASCII, it is a value of a header.
    if let Ok(stat) = HeaderValue::from_str(&ascii_json(stat)) {
        headers.insert(HeaderName::from_static(FILE_STAT_HEADER), stat);
    }
    headers
}

pub(crate) async fn write(
    app: Session,
    Call { path: vm, query, body: Upload { headers, data }, charge, .. }: Call<file::Write>,
) -> Result<Json<TransferSummary>, Failure> {
    charge.hold(UPLOAD)?;
    let cap = Cap::announced(&app.bounds, &headers)?;
    let (data, sum) = body::incoming(&headers, data, app.limits.silence);
    write_content(&app, &vm, query, content::of_bytes(data), (sum, cap)).await
}

/// The same from a body that tells holes by their length.
pub(crate) async fn write_extents(
    app: Session,
    Call { path: vm, query, body: Upload { headers, data }, charge, .. }: Call<file::WriteExtents>,
) -> Result<Json<TransferSummary>, Failure> {
    charge.hold(UPLOAD)?;
    let cap = Cap::of(&app.bounds);
    let (data, sum) = body::incoming(&headers, data, app.limits.silence);
    write_content(&app, &vm, query, extents::decoded(data), (sum, cap)).await
}

async fn write_content(
    app: &Session,
    vm: &VmRef,
    query: WriteFile,
    data: ContentStream,
    (sum, cap): (Sum, Cap),
) -> Result<Json<TransferSummary>, Failure> {
    let path = query.path.absolute()?;
    let options = WriteOptions {
        mode: query.mode.map(|mode| mode.0),
        owner: query.owner.map(|owner| owner.0),
        create_parents: query.parents,
        modified: query.modified.map(|time| time.0),
    };
    let guest = app.guest(vm).await?;
    uploads::admit(&app.bounds, &guest, &path).await?;
    let data = cap.on(data, Content::length);
    let bytes = guest.write_file(&path, &options, data).await.map_err(|error| cap.blame(error))?;
    Ok(Json(sum.of(bytes).await?))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: vm, query, .. }: Call<file::Remove>,
) -> Result<Done, Failure> {
    let (path, recursive) = (query.path.absolute()?, query.recursive);
    app.guest(&vm).await?.remove(&path, recursive).await?;
    Ok(Done)
}

pub(crate) async fn stat(
    app: Session,
    Call { path: vm, query, .. }: Call<file::Stat>,
) -> Result<Json<FileStat>, Failure> {
    let path = query.path.absolute()?;
    Ok(Json(app.guest(&vm).await?.stat(&path).await?))
}

pub(crate) async fn list(
    app: Session,
    Call { path: vm, query, charge, .. }: Call<file::List>,
) -> Result<Reply<operation::Json<FileList>>, Failure> {
    let path = query.path.absolute()?;
    let depth = query.depth;
    if !(1..=DEPTH_MAX).contains(&depth) {
        let detail = format!("depth: {depth} is not possible, 1 to {DEPTH_MAX} levels are");
        return Err(Failure::invalid("query_invalid", detail));
    }
    let mut list = app.guest(&vm).await?.list(&path, depth).await?;
    let entries = std::mem::take(&mut list.entries);
    listed::answer(&charge, &list, "entries", entries, |entry: &FileStat| {
        let bytes =
            [&entry.path_bytes, &entry.target_bytes].map(|bytes| bytes.as_ref().map_or(0, Vec::capacity));
        entry.path.capacity() + entry.target.as_ref().map_or(0, String::capacity) + bytes[0] + bytes[1]
    })
}

pub(crate) async fn hash(
    app: Session,
    Call { path: vm, query, .. }: Call<file::Hash>,
) -> Result<Json<FileHash>, Failure> {
    let path = query.path.absolute()?;
    let sha256 = app.guest(&vm).await?.hash_file(&path).await?;
    Ok(Json(FileHash { sha256 }))
}

pub(crate) async fn make_directory(
    app: Session,
    Call { path: vm, query, .. }: Call<file::MakeDir>,
) -> Result<Done, Failure> {
    let path = query.path.absolute()?;
    let (mode, parents) = (query.mode.map_or(0o755, |mode| mode.0), query.parents);
    let owner = query.owner.map(|owner| owner.0);
    let guest = app.guest(&vm).await?;
    uploads::admit(&app.bounds, &guest, &path).await?;
    guest.make_directory(&path, mode, parents, owner.as_ref()).await?;
    Ok(Done)
}

pub(crate) async fn rename(
    app: Session,
    Call { path: vm, query, .. }: Call<file::Rename>,
) -> Result<Done, Failure> {
    let (from, to) = (query.from.absolute()?, query.to.absolute()?);
    let guest = app.guest(&vm).await?;
    // Otherwise what was uploaded could be moved to anywhere.
    uploads::admit(&app.bounds, &guest, &to).await?;
    guest.rename(&from, &to).await?;
    Ok(Done)
}
