//! Memory held for a request, charged until its answer was sent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, SizeHint};
use microvm_types::ErrorKind;

use crate::caller::Peer;
use crate::failure::Failure;
use crate::share::{Budget, Share};

/// Bytes held by one request. Clones share one charge, which ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Charge(Arc<Mutex<Share>>);

impl Charge {
    /// A charge of nothing yet; `None` if `peer` may not even hold that.
    pub(crate) fn of(budget: &Arc<Budget>, peer: Peer) -> Option<Self> {
        budget.take(peer, 0).map(|share| Self(Arc::new(Mutex::new(share))))
    }

    /// Charges `bytes` more; whether there was enough.
    pub(crate) fn grow(&self, bytes: usize) -> bool {
        self.share(|share| share.grow(bytes as u64))
    }

    /// Charges `bytes` more.
    pub(crate) fn hold(&self, bytes: usize) -> Result<(), Failure> {
        if self.grow(bytes) { Ok(()) } else { Err(exhausted()) }
    }

    fn is_nothing(&self) -> bool {
        self.share(|share| share.amount() == 0)
    }

    fn share<T>(&self, act: impl FnOnce(&mut Share) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Too much is held for this caller.
pub(crate) fn exhausted() -> Failure {
    Failure::new(
        ErrorKind::Unavailable,
        "server_busy",
        "the server holds as much for this process as it may: read the answers to earlier requests, or try again later",
    )
}

/// Gives every request a charge, and keeps it until the answer was sent.
pub(crate) async fn charge(budget: Arc<Budget>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map_or(Peer(None), |info| info.0);
    let Some(charge) = Charge::of(&budget, peer) else { return exhausted().into_response() };
    request.extensions_mut().insert(charge.clone());
    let response = next.run(request).await;
    // An answer that was charged nothing keeps its own body: nothing has to be given back when it was sent.
    if charge.is_nothing() {
        return response;
    }
    response.map(|body| Body::new(Charged { body, _charge: charge }))
}

struct Charged {
    body: Body,
    _charge: Charge,
}

impl HttpBody for Charged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
