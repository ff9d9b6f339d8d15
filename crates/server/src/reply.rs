//! Answers, typed by what their operation promises.

use std::marker::PhantomData;

use axum::Json;
use axum::body::Body;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use microvm_api::operation::{
    self as api, Answer, AnyJson, Array, Created, CreatedOrAccepted, Data, Media, Nothing, Socket, Whole,
};
use serde::Serialize;

use crate::failure::Failure;

/// Answer of a handler whose operation promises `A`.
pub(crate) trait Replies<A: Answer> {
    /// As it is sent.
    fn into_answer(self) -> Response;
}

impl<A: Answer, R: Replies<A>> Replies<A> for Result<R, Failure> {
    fn into_answer(self) -> Response {
        match self {
            Ok(reply) => reply.into_answer(),
            Err(failure) => failure.into_response(),
        }
    }
}

impl<T: Serialize> Replies<api::Json<T>> for Json<T>
where
    api::Json<T>: Answer,
{
    fn into_answer(self) -> Response {
        self.into_response()
    }
}

/// Done, and nothing to tell.
pub(crate) struct Done;

impl Replies<Nothing> for Done {
    fn into_answer(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// An answer that is written already; only what makes an `A` makes one.
#[must_use]
pub(crate) struct Reply<A>(Response, PhantomData<fn() -> A>);

impl<A: Answer> Replies<A> for Reply<A> {
    fn into_answer(self) -> Response {
        self.0
    }
}

impl<A> Reply<A> {
    fn of(response: Response) -> Self {
        Self(response, PhantomData)
    }

    /// The same with one more header. A value that no header can hold is left out.
    pub(crate) fn with(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.0.headers_mut().insert(name, value);
        }
        self
    }

    /// The head and the body as they are sent.
    #[cfg(test)]
    pub(crate) fn into_response(self) -> Response {
        self.0
    }
}

impl<T: Serialize> Reply<Created<T>> {
    /// Something that was made.
    pub(crate) fn created(body: T) -> Self {
        Self::of((StatusCode::CREATED, Json(body)).into_response())
    }

    /// Adds the place where it can be had, below the prefix.
    pub(crate) fn at(self, path: &str) -> Self {
        self.with(header::LOCATION, format!("{}{path}", microvm_api::PREFIX))
    }

    /// As the answer of an operation that may also answer before it is made.
    pub(crate) fn or_accepted<U>(self) -> Reply<CreatedOrAccepted<T, U>> {
        Reply::of(self.0)
    }
}

impl<T, U: Serialize> Reply<CreatedOrAccepted<T, U>> {
    /// Something that is still being made.
    pub(crate) fn accepted(body: U) -> Self {
        Self::of((StatusCode::ACCEPTED, Json(body)).into_response())
    }
}

impl<T: Serialize> Reply<Array<T>> {
    /// A plain array.
    pub(crate) fn array(values: Vec<T>) -> Self {
        Self::of(Json(values).into_response())
    }
}

impl Reply<AnyJson> {
    /// JSON that is written already.
    pub(crate) fn json(text: Bytes) -> Self {
        Self::of(([(header::CONTENT_TYPE, "application/json")], text).into_response())
    }
}

impl<T> Reply<api::Json<T>> {
    /// JSON that is written piece by piece: the body has to be a `T`.
    pub(crate) fn written(body: Body) -> Self {
        Self::of(([(header::CONTENT_TYPE, "application/json")], body).into_response())
    }
}

impl<T> Reply<api::Lines<T>> {
    /// Lines of JSON: each in the body has to be a `T`.
    pub(crate) fn lines(body: Body) -> Self {
        Self::of(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
    }
}

impl<M: Media> Reply<Data<M>> {
    /// Bytes of a media type, with the headers that describe them.
    pub(crate) fn data(headers: HeaderMap, body: Body) -> Self {
        let reply = Self::of((headers, body).into_response());
        reply.with(header::CONTENT_TYPE, HeaderValue::from_static(M::TYPE))
    }
}

impl<M: Media> Reply<Whole<M>> {
    /// Bytes of a media type.
    pub(crate) fn whole(bytes: impl Into<Body>) -> Self {
        Self::of(([(header::CONTENT_TYPE, M::TYPE)], bytes.into()).into_response())
    }
}

impl<C, S> Reply<Socket<C, S>> {
    /// A WebSocket that `session` serves.
    pub(crate) fn socket<F>(
        upgrade: WebSocketUpgrade,
        session: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::of(upgrade.on_upgrade(session))
    }
}
