//! WebSockets over the unix socket.

use futures_util::StreamExt;
use microvm_api::exec::FRAME_MAX;
use microvm_api::operation::Operation as _;
use microvm_api::operations::event;
use microvm_api::queries::FollowEvents;
use microvm_api::vm::EventMessage;
use microvm_types::VmRef;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::client::{Client, problem_from};
use crate::error::ClientError;

pub(crate) type Socket = WebSocketStream<UnixStream>;

pub(crate) fn lost(action: &'static str, error: &tungstenite::Error) -> ClientError {
    ClientError::Lost { action, detail: error.to_string() }
}

impl Client {
    pub(crate) async fn websocket(&self, uri: &str, action: &'static str) -> Result<Socket, ClientError> {
        let stream = self.dial().await?;
        // What may wait in memory to be sent is bounded; a full buffer holds the sender up.
        let limits = WebSocketConfig::default()
            .max_message_size(Some(FRAME_MAX + 1024))
            .max_frame_size(Some(FRAME_MAX + 1024))
            .max_write_buffer_size(4 * FRAME_MAX);
        // The library demands a whole URL; only its path is used.
        let url = format!("ws://localhost{uri}");
        match tokio_tungstenite::client_async_with_config(url, stream, Some(limits)).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                Err(problem_from(response.status(), response.body().as_deref().unwrap_or_default()))
            }
            Err(error) => Err(lost(action, &error)),
        }
    }

    /// Events of all VMs from now on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self) -> Result<EventStream<EventMessage>, ClientError> {
        self.follow(&FollowEvents::default()).await
    }

    /// Some events from now on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn follow(&self, query: &FollowEvents) -> Result<EventStream<EventMessage>, ClientError> {
        Ok(EventStream {
            socket: self.open_with::<event::Follow, _, _>(&(), query).await?,
            kind: std::marker::PhantomData,
        })
    }

    /// Events of one VM from now on, also when it is renamed.
    ///
    /// # Errors
    /// See [`ClientError`]; an unknown VM is a [`ClientError::Problem`].
    pub async fn events_of(&self, vm: &VmRef) -> Result<EventStream<EventMessage>, ClientError> {
        let socket = self.open_with::<event::OfVm, _, _>(vm, &FollowEvents::default()).await?;
        Ok(EventStream { socket, kind: std::marker::PhantomData })
    }
}

/// Values that arrive one per text frame.
#[derive(Debug)]
pub struct EventStream<T> {
    socket: Socket,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> EventStream<T> {
    /// The next value; `None` when the server ends.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map(Some)
                        .map_err(|error| ClientError::Answer(error.to_string()));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(event::Follow::NAME, &error)),
            }
        }
    }
}
