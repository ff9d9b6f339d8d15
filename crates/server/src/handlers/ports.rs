//! TCP ports of a guest over a WebSocket: binary frames are the bytes, an empty one is the end of its direction, a close
//! frame the end of both.

use axum::extract::ws::{CloseFrame, Message, close_code};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use microvm_api::operation::{Port, Socket};
use microvm_api::operations::guest;
use microvm_ports::GuestError;
use microvm_ports::guest::PortConnection;
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::failure::Failure;
use crate::limits::{INPUT, OUTGOING};
use crate::reply::Reply;
use crate::session::Session;

pub(crate) async fn connect(
    app: Session,
    Call { path: (vm, Port(port)), body: request, charge, .. }: Call<guest::Connect>,
) -> Result<Reply<Socket<(), ()>>, Failure> {
    charge.hold(OUTGOING + INPUT)?;
    let guest = app.guest(&vm).await?;
    let connection = guest.connect_port(port).await?;
    Ok(Reply::socket(request, move |socket| async move {
        let (mut sink, mut stream) = socket.split();
        let PortConnection { mut incoming, outgoing } = connection;
        // The caller sends nothing more, or the guest takes nothing more.
        let caller_done = CancellationToken::new();
        let from_guest = async {
            while let Some(part) = incoming.next().await {
                let bytes = part?;
                // An empty frame would say that the guest has ended its direction.
                if !bytes.is_empty() && sink.send(Message::Binary(bytes)).await.is_err() {
                    return Ok::<(), GuestError>(());
                }
            }
            // A caller who went away does not hear it.
            let _ = sink.send(Message::Binary(Bytes::new())).await;
            caller_done.cancelled().await;
            Ok(())
        };
        let to_guest = async {
            let mut outgoing = Some(outgoing);
            while let Some(Ok(message)) = stream.next().await {
                match message {
                    Message::Binary(bytes) if !bytes.is_empty() => {
                        if let Some(open) = &outgoing
                            && open.send(bytes).await.is_ok()
                        {
                            continue;
                        }
                    }
                    Message::Binary(_) => {}
                    Message::Close(_) => return,
                    _ => continue,
                }
                // Dropped, it ends the direction in the guest; the other one may go on.
                outgoing = None;
                caller_done.cancel();
            }
        };
        let last = tokio::select! {
            ended = from_guest => match ended {
                Ok(()) => close(close_code::NORMAL, ""),
                Err(error) => close(close_code::ERROR, &error.to_string()),
            },
            // The caller is gone.
            () = to_guest => None,
            () = app.ending.cancelled() => close(close_code::AWAY, "the server ends"),
        };
        if let Some(last) = last {
            let _ = sink.send(last).await;
        }
        drop((guest, charge));
    }))
}

/// A close frame; its reason has at most 123 bytes (RFC 6455, section 5.5).
fn close(code: u16, reason: &str) -> Option<Message> {
    let end = reason.floor_char_boundary(123);
    Some(Message::Close(Some(CloseFrame { code, reason: reason[..end].into() })))
}
