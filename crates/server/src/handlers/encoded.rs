//! Files of a guest as base64 in JSON, for clients that have nothing but JSON.

use axum::Json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use microvm_api::files::{ENCODED_MAX, EncodedContent, WriteEncoded};
use microvm_api::operations::file;
use microvm_api::query::GuestPath;
use microvm_ports::content;
use microvm_types::files::{LeftOut, TransferSummary, WriteOptions};
use sha2::{Digest as _, Sha256};

use crate::body::hex;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::uploads::{self, Cap};
use crate::limits::{OUTGOING, UPLOAD};
use crate::session::Session;

/// Bytes that are sent to a guest at once.
const PART: usize = 64 << 10;
/// Bytes charged for one byte of a file: the byte, four thirds of it in base64, and the same in JSON.
const COPIES: usize = 4;

pub(crate) async fn read(
    app: Session,
    Call { path: vm, query, charge, .. }: Call<file::ReadEncoded>,
) -> Result<Json<EncodedContent>, Failure> {
    let (path, offset, length) = (query.path.absolute()?, query.offset, query.length);
    if length.is_some_and(|length| length > ENCODED_MAX as u64) {
        return Err(too_much());
    }
    charge.hold(OUTGOING)?;
    let guest = app.guest(&vm).await?;
    let (stat, data) = guest.read_file(&path, offset, length).await?;
    // The size of what is no plain file is not known before it was read.
    if length.is_none() && stat.size.saturating_sub(offset) > ENCODED_MAX as u64 {
        return Err(too_much());
    }
    let (mut all, mut data) = (Vec::new(), content::expanded(data));
    while let Some(part) = data.next().await {
        let part = part?;
        if all.len() + part.len() > ENCODED_MAX {
            return Err(too_much());
        }
        charge.hold(part.len() * COPIES)?;
        all.extend_from_slice(&part);
    }
    let sha256 = hex(&Sha256::digest(&all));
    Ok(Json(EncodedContent { content: STANDARD.encode(&all), bytes: all.len() as u64, sha256, stat }))
}

pub(crate) async fn write(
    app: Session,
    Call { path: vm, body: request, charge, .. }: Call<file::WriteEncoded>,
) -> Result<Json<TransferSummary>, Failure> {
    let WriteEncoded { path, content, sha256: wanted, mode, owner, parents } = request;
    let path = GuestPath::from(path.as_bytes()).absolute()?;
    charge.hold(UPLOAD)?;
    let data = STANDARD.decode(content).map_err(|error| {
        let detail = format!(
            "content: it is no base64 of RFC 4648, section 4, with padding and without line breaks ({error})"
        );
        Failure::invalid("body_invalid", detail)
    })?;
    if data.len() > ENCODED_MAX {
        return Err(too_much());
    }
    Cap::of(&app.bounds).check(data.len() as u64)?;
    let sha256 = hex(&Sha256::digest(&data));
    if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&sha256)) {
        let detail = format!("sha256: {wanted} was announced and {sha256} arrived: nothing was written");
        return Err(Failure::invalid("source_failed", detail));
    }
    let options = WriteOptions {
        mode: mode.map(|mode| mode.0),
        owner: owner.map(|owner| owner.0),
        create_parents: parents,
        modified: None,
    };
    let guest = app.guest(&vm).await?;
    uploads::admit(&app.bounds, &guest, &path).await?;
    let mut rest = Bytes::from(data);
    let parts = std::iter::from_fn(move || (!rest.is_empty()).then(|| rest.split_to(rest.len().min(PART))));
    let data = Box::pin(futures_util::stream::iter(parts.map(Ok)));
    let bytes = guest.write_file(&path, &options, content::of_bytes(data)).await?;
    Ok(Json(TransferSummary { bytes, sha256, left_out: LeftOut::default() }))
}

fn too_much() -> Failure {
    let detail = format!(
        "base64 carries at most {ENCODED_MAX} bytes of a file at once: read a part with `offset` and `length`, or send and fetch the bytes \
         themselves (`/files`)"
    );
    Failure::too_large(detail)
}
