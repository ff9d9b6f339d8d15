//! Changes of files, as lines.

use futures_util::StreamExt;
use microvm_api::files::WatchLine;
use microvm_api::operation::Lines;
use microvm_api::operations::file;

use crate::call::Call;
use crate::failure::Failure;
use crate::limits::OUTGOING;
use crate::lines::lines;
use crate::reply::Reply;
use crate::session::Session;

pub(crate) async fn watch(
    app: Session,
    Call { path: vm, query, charge, .. }: Call<file::Watch>,
) -> Result<Reply<Lines<WatchLine>>, Failure> {
    let (path, recursive) = (query.path.absolute()?, query.recursive);
    charge.hold(OUTGOING)?;
    let guest = app.guest(&vm).await?;
    let changes = guest.watch(&path, recursive).await?;
    let ended = app.ending.clone().cancelled_owned();
    Ok(lines(changes.take_until(ended).map(move |change| {
        // The VM counts as used as long as somebody watches.
        let _in_use = &guest;
        match change {
            Ok(change) => WatchLine::Change(change),
            Err(error) => WatchLine::Failed { problem: *Failure::from(error).0 },
        }
    })))
}
