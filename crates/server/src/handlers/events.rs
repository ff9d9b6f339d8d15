//! What happens to VMs, over a WebSocket: one text frame per event.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::app::App;
use crate::failure::Failure;
use crate::handlers::exec::upgrade;

pub(crate) async fn events(
    State(app): State<Arc<App>>,
    request: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let request = upgrade(request)?;
    // Subscribed before the answer: whoever has the answer misses nothing.
    let events = app.service.events();
    Ok(request.on_upgrade(move |socket| async move {
        tokio::select! {
            () = forward(&app, events, socket) => {}
            () = app.ending.cancelled() => {}
        }
    }))
}

async fn forward(app: &App, mut events: Receiver<microvm_core::VmEvent>, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // Callers have nothing to say here; reading answers pings and notices that they went away.
            message = stream.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let event = match event {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "a watcher of events is too slow and missed some");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let Ok(text) = serde_json::to_string(&app.event(event)) else { continue };
        if sink.send(Message::Text(Utf8Bytes::from(text))).await.is_err() {
            return;
        }
    }
}
