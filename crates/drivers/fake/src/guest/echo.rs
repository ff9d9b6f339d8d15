//! The TCP service of fake guests.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use microvm_ports::GuestError;
use microvm_ports::guest::{CloseReason, PortConnection};
use tokio::sync::{mpsc, watch};

use super::system::wait_closed;

/// Port of the service, as in RFC 862.
pub(crate) const ECHO_PORT: u16 = 7;

/// A connection that gets back what it sends and, after its end, how much that was: `5 bytes\n`.
pub(crate) fn connect(closed: watch::Receiver<Option<CloseReason>>) -> PortConnection {
    let (outgoing, received) = mpsc::channel::<Bytes>(4);
    let state = Some((received, closed, 0));
    let incoming = stream::unfold(state, |state| async move {
        let (mut received, mut closed, mut count) = state?;
        tokio::select! {
            reason = wait_closed(&mut closed) => Some((Err(GuestError::Closed(reason)), None)),
            part = received.recv() => match part {
                Some(bytes) => {
                    count += bytes.len();
                    Some((Ok(bytes), Some((received, closed, count))))
                }
                None => Some((Ok(Bytes::from(format!("{count} bytes\n"))), None)),
            },
        }
    });
    PortConnection { incoming: incoming.boxed(), outgoing }
}
