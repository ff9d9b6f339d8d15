//! Calls: requests made of the rows of operations.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use microvm_api::operation::{
    Answer, AnyJson, Array, CommandJson, Created, CreatedOrAccepted, Data, FileJson, Handshake, Json,
    Lines as LinesOf, LongJson, Media, Nothing, Operation, RequestBody, Socket as SocketOf, Whole as WholeOf,
    uri,
};
use microvm_api::queries::NoQuery;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::client::{Client, read_all, read_json};
use crate::error::ClientError;
use crate::lines::Lines;
use crate::transfer::{self, Body, Download};
use crate::websocket::Socket;

impl Client {
    /// Makes the request of an operation and reads its answer as the operation says. Any row of
    /// [`microvm_api::operations`] can be called so, except WebSockets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<O>(
        &self,
        path: &O::Path,
        query: &O::Query,
        body: <O::Body as Sent>::Value<'_>,
    ) -> Result<<O::Answer as Received>::Value, ClientError>
    where
        O: Operation,
        O::Body: Sent,
        O::Answer: Received,
    {
        // Client and server read the same row, so path and query cannot drift apart.
        let uri = uri::<O>(path, query).map_err(|error| ClientError::Source(error.to_string()))?;
        let (content_type, body) = O::Body::send(body)?;
        let response = self.request::<O>(&uri, content_type, body).await?;
        O::Answer::receive(response, O::NAME).await
    }

    /// The same for an operation that takes nothing but its path.
    pub(crate) async fn ask<O>(&self, path: &O::Path) -> Result<<O::Answer as Received>::Value, ClientError>
    where
        O: Operation<Query = NoQuery, Body = Nothing>,
        O::Answer: Received,
    {
        self.call::<O>(path, &NoQuery {}, ()).await
    }

    /// The same for an operation that takes path and body.
    pub(crate) async fn tell<O>(
        &self,
        path: &O::Path,
        body: <O::Body as Sent>::Value<'_>,
    ) -> Result<<O::Answer as Received>::Value, ClientError>
    where
        O: Operation<Query = NoQuery>,
        O::Body: Sent,
        O::Answer: Received,
    {
        self.call::<O>(path, &NoQuery {}, body).await
    }

    /// Opens the WebSocket of an operation that takes nothing but its path.
    pub(crate) async fn open<O, C, S>(&self, path: &O::Path) -> Result<Socket, ClientError>
    where
        O: Operation<Query = NoQuery, Body = Handshake, Answer = SocketOf<C, S>>,
    {
        self.open_with::<O, C, S>(path, &NoQuery {}).await
    }

    /// Opens the WebSocket of an operation.
    pub(crate) async fn open_with<O, C, S>(
        &self,
        path: &O::Path,
        query: &O::Query,
    ) -> Result<Socket, ClientError>
    where
        O: Operation<Body = Handshake, Answer = SocketOf<C, S>>,
    {
        let uri = uri::<O>(path, query).map_err(|error| ClientError::Source(error.to_string()))?;
        self.websocket(&uri, O::NAME).await
    }
}

/// Way to send a body.
pub trait Sent: RequestBody {
    /// Type that the caller gives.
    type Value<'a>: Send;

    /// It as a body, with its media type.
    ///
    /// # Errors
    /// [`ClientError::Source`] if it cannot be written.
    fn send(value: Self::Value<'_>) -> Result<(Option<&'static str>, Body), ClientError>;
}

impl Sent for Nothing {
    type Value<'a> = ();

    fn send((): ()) -> Result<(Option<&'static str>, Body), ClientError> {
        Ok((None, transfer::empty()))
    }
}

fn json(value: &impl Serialize) -> Result<(Option<&'static str>, Body), ClientError> {
    let bytes = serde_json::to_vec(value).map_err(|error| ClientError::Source(error.to_string()))?;
    Ok((Some("application/json"), transfer::full(bytes)))
}

/// JSON bodies, all written alike.
macro_rules! sent_as_json {
    ($($body:ident),*) => {$(
        impl<T: Serialize + DeserializeOwned + ToSchema + Sync + 'static> Sent for $body<T> {
            type Value<'a> = &'a T;

            fn send(value: &T) -> Result<(Option<&'static str>, Body), ClientError> {
                json(value)
            }
        }
    )*};
}

sent_as_json!(Json, LongJson, CommandJson, FileJson);

impl<M: Media> Sent for Data<M> {
    type Value<'a> = Body;

    fn send(body: Body) -> Result<(Option<&'static str>, Body), ClientError> {
        Ok((Some(M::TYPE), body))
    }
}

/// Way to read an answer. `action` is the name of the operation, for errors.
pub trait Received: Answer {
    /// Type that the caller gets.
    type Value;

    /// Reads it, or takes over the stream.
    fn receive(
        response: Response<Incoming>,
        action: &'static str,
    ) -> impl Future<Output = Result<Self::Value, ClientError>> + Send;
}

impl Received for Nothing {
    type Value = ();

    async fn receive(response: Response<Incoming>, action: &'static str) -> Result<(), ClientError> {
        // Read to the end, so that the connection can be used again.
        response.into_body().collect().await.map_err(ClientError::lost(action)).map(drop)
    }
}

macro_rules! read_as_json {
    ($($answer:ident<$t:ident> is $value:ty;)*) => {$(
        impl<$t: DeserializeOwned + ToSchema + Send + 'static> Received for $answer<$t> {
            type Value = $value;

            async fn receive(
                response: Response<Incoming>,
                action: &'static str,
            ) -> Result<$value, ClientError> {
                read_json(response, action).await
            }
        }
    )*};
}

read_as_json! {
    Json<T> is T;
    Created<T> is T;
    Array<T> is Vec<T>;
}

impl Received for AnyJson {
    type Value = serde_json::Value;

    async fn receive(
        response: Response<Incoming>,
        action: &'static str,
    ) -> Result<serde_json::Value, ClientError> {
        read_json(response, action).await
    }
}

/// Something that was made, or that is still being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made<T, U> {
    /// It was made.
    Created(T),
    /// It is still being made.
    Accepted(U),
}

impl<T, U> Received for CreatedOrAccepted<T, U>
where
    T: DeserializeOwned + ToSchema + Send + 'static,
    U: DeserializeOwned + ToSchema + Send + 'static,
{
    type Value = Made<T, U>;

    async fn receive(response: Response<Incoming>, action: &'static str) -> Result<Made<T, U>, ClientError> {
        // The status tells which of the two bodies came.
        if response.status() == StatusCode::ACCEPTED {
            read_json(response, action).await.map(Made::Accepted)
        } else {
            read_json(response, action).await.map(Made::Created)
        }
    }
}

impl<T: DeserializeOwned + ToSchema + Send + 'static> Received for LinesOf<T> {
    type Value = Lines<T>;

    async fn receive(response: Response<Incoming>, action: &'static str) -> Result<Lines<T>, ClientError> {
        Ok(Lines::new(response, action))
    }
}

impl<M: Media> Received for Data<M> {
    type Value = Download;

    async fn receive(response: Response<Incoming>, action: &'static str) -> Result<Download, ClientError> {
        Ok(Download::new(response, action))
    }
}

/// Bytes that came whole, with the headers that describe them.
#[derive(Debug)]
pub struct Whole {
    /// The bytes.
    pub bytes: bytes::Bytes,
    headers: hyper::HeaderMap,
}

impl Whole {
    /// A header that holds a number.
    ///
    /// # Errors
    /// [`ClientError::Answer`] if it is missing or holds something else.
    pub fn number(&self, name: &str) -> Result<u64, ClientError> {
        let text = self.headers.get(name).and_then(|value| value.to_str().ok());
        let number = text.and_then(|text| text.parse().ok());
        number.ok_or_else(|| ClientError::Answer(format!("the answer has no header `{name}`")))
    }
}

impl<M: Media> Received for WholeOf<M> {
    type Value = Whole;

    async fn receive(response: Response<Incoming>, action: &'static str) -> Result<Whole, ClientError> {
        let headers = response.headers().clone();
        Ok(Whole { bytes: read_all(response, action).await?, headers })
    }
}
