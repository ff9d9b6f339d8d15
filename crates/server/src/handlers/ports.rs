//! TCP ports of a guest over a WebSocket: binary frames are the bytes, a close frame is the end.

use axum::extract::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use microvm_types::VmRef;

use crate::charge::Charge;
use crate::extract::Path;
use crate::failure::Failure;
use crate::handlers::exec::upgrade;
use crate::limits::{INPUT, OUTGOING};
use crate::session::Session;

pub(crate) async fn connect(
    app: Session,
    Path((vm, port)): Path<(String, String)>,
    Extension(charge): Extension<Charge>,
    request: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let vm: VmRef = vm.parse()?;
    let port = port.parse().ok().filter(|&port: &u16| port != 0).ok_or_else(|| {
        Failure::invalid("port_invalid", format!("`{port}` is not a port: there are 1 to 65535"))
    })?;
    let request = upgrade(request)?;
    charge.hold(OUTGOING + INPUT)?;
    let guest = app.services.vms.guest(&vm).await?;
    let connection = guest.connect_port(port).await?;
    Ok(request.on_upgrade(move |socket| async move {
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
