//! TCP ports of a guest over a WebSocket: binary frames are the bytes, a close frame is the end.

use axum::extract::ws::Message;
use futures_util::{SinkExt, StreamExt};
use microvm_api::operation::{Port, Socket};
use microvm_api::operations::guest;

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
        let (mut incoming, outgoing) = (connection.incoming, connection.outgoing);
        let from_guest = async {
            while let Some(Ok(bytes)) = incoming.next().await {
                if sink.send(Message::Binary(bytes)).await.is_err() {
                    return;
                }
            }
            // A caller who went away does not hear it.
            let _ = sink.send(Message::Close(None)).await;
        };
        let to_guest = async {
            while let Some(Ok(message)) = stream.next().await {
                let bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Close(_) => break,
                    _ => continue,
                };
                if outgoing.send(bytes).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = from_guest => {}
            () = to_guest => {}
            () = app.ending.cancelled() => {}
        }
        drop((guest, charge));
    }))
}
