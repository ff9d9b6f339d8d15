//! The end of a channel.

use microvm_ports::guest::CloseReason;
use tokio::sync::watch;

pub(crate) async fn wait_closed(closed: &mut watch::Receiver<Option<CloseReason>>) -> CloseReason {
    let reason = closed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
    reason.unwrap_or(CloseReason::Local)
}
