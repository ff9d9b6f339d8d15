//! Events of VMs over a WebSocket: one text frame per event.

use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use futures_util::{SinkExt, StreamExt};
use microvm_api::operation::Socket;
use microvm_api::operations::event;
use microvm_api::queries::FollowEvents;
use microvm_api::query::{FilterState, RawBytes};
use microvm_api::vm::{Event, EventMessage};
use microvm_core::Events;
use microvm_types::Phase;
use tokio::sync::broadcast::error::RecvError;

use crate::call::Call;
use crate::failure::Failure;
use crate::reply::Reply;
use crate::session::Session;

pub(crate) async fn events(
    app: Session,
    Call { body: request, query, .. }: Call<event::Follow>,
) -> Result<Reply<Socket<(), EventMessage>>, Failure> {
    follow(app, request, &query)
}

pub(crate) async fn of_system(
    app: Session,
    Call { body: request, query, .. }: Call<event::OfSystem>,
) -> Result<Reply<Socket<(), EventMessage>>, Failure> {
    follow(app, request, &query)
}

pub(crate) async fn of_vm(
    app: Session,
    Call { path: vm, body: request, mut query, .. }: Call<event::OfVm>,
) -> Result<Reply<Socket<(), EventMessage>>, Failure> {
    // One that is not there is no VM to follow.
    let found = app.services.vms.get(&vm)?.record.id;
    query.vm = vec![RawBytes(found.as_str().as_bytes().to_vec())];
    follow(app, request, &query)
}

fn follow(
    app: Session,
    request: WebSocketUpgrade,
    query: &FollowEvents,
) -> Result<Reply<Socket<(), EventMessage>>, Failure> {
    let filter = Filter::new(&app, query)?;
    // Subscribed before the answer: whoever has the answer misses nothing.
    let events = app.services.vms.events()?;
    Ok(Reply::socket(request, move |socket| async move {
        tokio::select! {
            () = forward(&app, events, &filter, socket) => {}
            () = app.ending.cancelled() => {}
        }
    }))
}

/// Events that a watcher asked for.
struct Filter {
    /// Ids or names; empty: all VMs.
    vms: Vec<String>,
    /// Empty: all states.
    states: Vec<Phase>,
}

impl Filter {
    fn new(app: &Session, query: &FollowEvents) -> Result<Self, Failure> {
        let named = |name: &RawBytes| {
            let text = String::from_utf8_lossy(&name.0).into_owned();
            // A VM that is there is followed by its id, also when it is renamed; another one may come.
            let found = text.parse().ok().and_then(|vm| app.services.vms.get(&vm).ok());
            found.map_or(text, |view| view.record.id.to_string())
        };
        let states = query.state.iter().map(FilterState::phase).collect::<Result<_, _>>()?;
        Ok(Self { vms: query.vm.iter().map(named).collect(), states })
    }

    fn takes(&self, event: &Event) -> bool {
        let is_named = |vm: &String| vm == event.vm.as_str() || vm == event.name.as_str();
        (self.vms.is_empty() || self.vms.iter().any(is_named))
            && (self.states.is_empty() || self.states.contains(&event.state))
    }
}

async fn forward(app: &Session, mut events: Events, filter: &Filter, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    loop {
        let event = tokio::select! {
            event = events.next() => match event.map(|event| app.event(event)) {
                Ok(None) => continue,
                Ok(Some(event)) if !filter.takes(&event) => continue,
                Ok(Some(event)) => Ok(event),
                Err(error) => Err(error),
            },
            // Callers have nothing to say here; reading answers pings and notices that they went away.
            message = stream.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let Some(event) = told(event, |event| event) else { return };
        let Ok(text) = serde_json::to_string(&event) else { return };
        if sink.send(Message::Text(Utf8Bytes::from(text))).await.is_err() {
            return;
        }
    }
}

/// Next event for a watcher; `None` at the end.
fn told<T>(received: Result<T, RecvError>, tell: impl FnOnce(T) -> Event) -> Option<EventMessage> {
    match received {
        Ok(event) => Some(EventMessage::Event(tell(event))),
        Err(RecvError::Lagged(missed)) => {
            tracing::warn!(missed, "a watcher of events is too slow and missed some");
            Some(EventMessage::Missed { missed })
        }
        Err(RecvError::Closed) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_watcher_that_is_too_slow_is_told_how_many_it_missed() {
        let (sender, mut receiver) = tokio::sync::broadcast::channel(1);
        for name in ["one", "two", "three"] {
            sender.send(name).unwrap();
        }
        drop(sender);
        let tell = |name: &str| Event {
            at: "2025-12-31T19:00:00.000-05:00".to_owned(),
            vm: "0".repeat(20).parse().unwrap(),
            name: name.parse().unwrap(),
            state: microvm_types::Phase::Running,
            gone: false,
            detail: None,
            stop_reason: None,
        };
        let first = told(receiver.recv().await, tell).unwrap();
        assert_eq!(serde_json::to_value(&first).unwrap(), serde_json::json!({ "missed": 2 }));
        let second = told(receiver.recv().await, tell).unwrap();
        assert!(matches!(second, EventMessage::Event(event) if event.name.as_str() == "three"));
        assert_eq!(told(receiver.recv().await, tell), None);
    }
}
