//! Changes of files, as lines.

use axum::extract::Extension;
use axum::response::Response;
use futures_util::StreamExt;
use microvm_types::files::WatchEvent;
use serde::Serialize;

use crate::charge::Charge;
use crate::extract::{Parameters, Vm};
use crate::failure::Failure;
use crate::limits::OUTGOING;
use crate::lines::lines;
use crate::session::Session;

/// One line: a change, or why there will be no more.
#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Change(WatchEvent),
    Failed { problem: microvm_api::Problem },
}

pub(crate) async fn watch(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
    query: Parameters,
) -> Result<Response, Failure> {
    let (path, recursive) = (query.path("path")?, query.0.flag("recursive")?);
    charge.hold(OUTGOING)?;
    let guest = app.services.vms.guest(&vm).await?;
    let changes = guest.watch(&path, recursive).await?;
    let ended = app.ending.clone().cancelled_owned();
    Ok(lines(changes.take_until(ended).map(move |change| {
        // The VM counts as used as long as somebody watches.
        let _in_use = &guest;
        match change {
            Ok(change) => Line::Change(change),
            Err(error) => Line::Failed { problem: *Failure::from(error).0 },
        }
    })))
}
