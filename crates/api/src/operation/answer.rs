//! Answers, as types.

use std::marker::PhantomData;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::body::{Data, Json, Media, Nothing, content};
use super::header::{self, Header};
use crate::schemas::Schemas;

/// Answer to a successful request.
pub trait Answer: Send + Sync + 'static {
    /// Status of success.
    const STATUS: u16;

    /// All ways to succeed, by status, as responses of an OpenAPI operation. Headers that every response has are added by
    /// the caller.
    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value>;
}

/// JSON that describes itself, such as the OpenAPI document.
#[derive(Debug, Clone, Copy)]
pub struct AnyJson;

/// A plain JSON array.
#[derive(Debug, Clone, Copy)]
pub struct Array<T>(PhantomData<fn() -> T>);

/// A created thing: JSON with status 201.
#[derive(Debug, Clone, Copy)]
pub struct Created<T>(PhantomData<fn() -> T>);

/// A created thing, with status 201, or one that is still being created, with status 202, as the request asks.
#[derive(Debug, Clone, Copy)]
pub struct CreatedOrAccepted<T, U>(PhantomData<fn() -> (T, U)>);

/// Newline-delimited JSON, one value a line, while the work is under way. Closing the connection cancels it.
#[derive(Debug, Clone, Copy)]
pub struct Lines<T>(PhantomData<fn() -> T>);

/// Bytes of a media type that are sent whole, with status 200.
#[derive(Debug, Clone, Copy)]
pub struct Whole<M>(PhantomData<fn() -> M>);

/// A WebSocket. Text frames from the client are `C` and text frames from the server are `S` in JSON; `()` where there are none.
#[derive(Debug, Clone, Copy)]
pub struct Socket<C, S>(PhantomData<fn() -> (C, S)>);

fn one(status: u16, about: &str, media: &str, schema: Value) -> Map<String, Value> {
    let content = json!({ media: { "schema": schema } });
    Map::from_iter([(status.to_string(), json!({ "description": about, "content": content }))])
}

/// Bytes with status 200.
fn bytes<M: Media>(about: &str) -> Map<String, Value> {
    let answer = json!({ "description": about, "content": content::<M>() });
    Map::from_iter([("200".to_owned(), answer)])
}

/// Adds headers to all responses.
pub(super) fn with_headers(responses: &mut Map<String, Value>, headers: &[Header], schemas: &mut Schemas) {
    for response in responses.values_mut() {
        for header in headers {
            response["headers"][header.name] = header.describe(schemas);
        }
    }
}

impl Answer for Nothing {
    const STATUS: u16 = 204;

    fn describe(_about: &str, _schemas: &mut Schemas) -> Map<String, Value> {
        Map::from_iter([(Self::STATUS.to_string(), json!({ "description": "Done" }))])
    }
}

impl<T: ToSchema + 'static> Answer for Json<T> {
    const STATUS: u16 = 200;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        one(Self::STATUS, about, "application/json", schemas.reference::<T>())
    }
}

impl Answer for AnyJson {
    const STATUS: u16 = 200;

    fn describe(about: &str, _schemas: &mut Schemas) -> Map<String, Value> {
        one(Self::STATUS, about, "application/json", json!({ "type": "object" }))
    }
}

impl<T: ToSchema + 'static> Answer for Array<T> {
    const STATUS: u16 = 200;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        let schema = json!({ "type": "array", "items": schemas.reference::<T>() });
        let mut all = one(Self::STATUS, about, "application/json", schema);
        with_headers(&mut all, &[header::UNREADABLE], schemas);
        all
    }
}

impl<T: ToSchema + 'static> Answer for Created<T> {
    const STATUS: u16 = 201;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        one(Self::STATUS, about, "application/json", schemas.reference::<T>())
    }
}

impl<T: ToSchema + 'static, U: ToSchema + 'static> Answer for CreatedOrAccepted<T, U> {
    const STATUS: u16 = 201;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        let mut all = one(Self::STATUS, about, "application/json", schemas.reference::<T>());
        let accepted = schemas.reference::<U>();
        all.extend(one(202, "The work continues after the answer", "application/json", accepted));
        all
    }
}

impl<T: ToSchema + 'static> Answer for Lines<T> {
    const STATUS: u16 = 200;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        let about = format!("{about}: one JSON value a line");
        one(Self::STATUS, &about, "application/x-ndjson", schemas.reference::<T>())
    }
}

impl<M: Media> Answer for Data<M> {
    const STATUS: u16 = 200;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        let mut all = bytes::<M>(about);
        with_headers(&mut all, M::STREAM_HEADERS, schemas);
        all
    }
}

impl<M: Media> Answer for Whole<M> {
    const STATUS: u16 = 200;

    fn describe(about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        let mut all = bytes::<M>(about);
        with_headers(&mut all, M::WHOLE_HEADERS, schemas);
        all
    }
}

impl<C: Message, S: Message> Answer for Socket<C, S> {
    const STATUS: u16 = 101;

    fn describe(_about: &str, schemas: &mut Schemas) -> Map<String, Value> {
        let mut answer = json!({ "description": "The connection goes on as a WebSocket" });
        for (side, schema) in
            [("x-client-messages", C::schema(schemas)), ("x-server-messages", S::schema(schemas))]
        {
            if let Some(schema) = schema {
                answer[side] = schema;
            }
        }
        Map::from_iter([(Self::STATUS.to_string(), answer)])
    }
}

/// Text frames of a WebSocket; `()`: there are none.
pub trait Message: Send + Sync + 'static {
    /// Its schema.
    fn schema(schemas: &mut Schemas) -> Option<Value>;
}

impl Message for () {
    fn schema(_schemas: &mut Schemas) -> Option<Value> {
        None
    }
}

macro_rules! messages {
    ($($type:ty),*) => {$(
        impl Message for $type {
            fn schema(schemas: &mut Schemas) -> Option<Value> {
                Some(schemas.reference::<Self>())
            }
        }
    )*};
}

messages!(crate::exec::ClientMessage, crate::exec::ServerMessage, crate::vm::EventMessage);
