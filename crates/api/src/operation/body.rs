//! Bodies of requests, as types.

use std::marker::PhantomData;

use microvm_types::extents;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::header::{self, Header};
use crate::schemas::Schemas;

/// Longest field in bytes of a body whose [long fields](RequestBody::LONG_FIELDS) are named, the others.
pub const SHORT_FIELD_MAX: usize = 64 << 10;

/// Body of a request.
pub trait RequestBody: Send + Sync + 'static {
    /// Largest JSON in bytes; 0 where it carries none.
    const JSON_MAX: usize = 0;
    /// Bytes that one byte of its JSON takes at most when it is read.
    const EXPANSION: usize = 0;
    /// The only fields that may be longer than [`SHORT_FIELD_MAX`], of JSON that may; `None`: every field. Readers repeat in their errors
    /// what they did not expect, several times and with escapes.
    const LONG_FIELDS: Option<&'static [&'static str]> = None;

    /// Most bytes that JSON of so many bytes takes when it is read, itself included.
    #[must_use]
    fn held(bytes: usize) -> usize {
        bytes.saturating_mul(Self::EXPANSION)
    }

    /// It as the request body of an OpenAPI operation.
    fn describe(schemas: &mut Schemas) -> Option<Value>;
}

/// No body: in requests, or an answer with status 204.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;

/// Bytes of a media type that are streamed: a body, or an answer with status 200. The SHA-256 is in a trailer.
#[derive(Debug, Clone, Copy)]
pub struct Data<M>(PhantomData<fn() -> M>);

/// The handshake of a WebSocket; goes with the answer [`super::Socket`].
#[derive(Debug, Clone, Copy)]
pub struct Handshake;

impl RequestBody for Nothing {
    fn describe(_schemas: &mut Schemas) -> Option<Value> {
        None
    }
}

impl RequestBody for Handshake {
    fn describe(_schemas: &mut Schemas) -> Option<Value> {
        None
    }
}

macro_rules! json_bodies {
    ($($(#[$doc:meta])* $name:ident: $most:expr, $expansion:expr, $long:expr $(, $held:expr)?;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name<T>(PhantomData<fn() -> T>);

        impl<T: Serialize + DeserializeOwned + ToSchema + 'static> RequestBody for $name<T> {
            const JSON_MAX: usize = $most;
            const EXPANSION: usize = $expansion;
            const LONG_FIELDS: Option<&'static [&'static str]> = $long;
            $(
                fn held(bytes: usize) -> usize {
                    $held(bytes)
                }
            )?

            fn describe(schemas: &mut Schemas) -> Option<Value> {
                Some(json::<T>(schemas))
            }
        }
    )*};
}

json_bodies! {
    /// A JSON body of at most 64 KiB in a request, or an answer with status 200.
    Json: 64 << 10, 16, None;
    /// A JSON body of at most [`crate::JSON_BODY_MAX`] bytes, where texts of users are in it: recipes, templates.
    LongJson: crate::JSON_BODY_MAX, 16, None;
    /// A JSON body of at most 8 MiB: a command of one MiB, whatever characters of it JSON writes longer.
    CommandJson: 8 << 20, 16, Some(&["command", "env"]), command_held;
    /// A JSON body of at most 16 MiB that is one long text: a file in base64. It is held as it came, as its text, and as the
    /// bytes that the text stands for.
    FileJson: 16 << 20, 4, Some(&["content"]);
}

/// What a command takes: words of one byte take 28 times their JSON (a `String`, its allocation, and a list that has just doubled), but no
/// more than a MiB of words with their NULs is read, which never takes more than 40 MiB. All else takes 16 times its JSON: variables in
/// a tree.
fn command_held(bytes: usize) -> usize {
    bytes.saturating_mul(16).saturating_add(bytes.min(2 << 20) * 12)
}

impl<M: Media> RequestBody for Data<M> {
    fn describe(_schemas: &mut Schemas) -> Option<Value> {
        Some(json!({ "required": true, "content": content::<M>() }))
    }
}

fn json<T: DeserializeOwned + ToSchema>(schemas: &mut Schemas) -> Value {
    let schema = schemas.reference::<T>();
    // No body is read as `{}`.
    let required = serde_json::from_str::<T>("{}").is_err();
    json!({ "required": required, "content": { "application/json": { "schema": schema } } })
}

pub(super) fn content<M: Media>() -> Value {
    let schema = if M::TYPE.starts_with("text/") {
        json!({ "type": "string" })
    } else {
        json!({ "type": "string", "format": "binary" })
    };
    json!({ M::TYPE: { "schema": schema } })
}

/// A media type of streamed bytes.
pub trait Media: Send + Sync + 'static {
    /// Its name, as in `Content-Type`.
    const TYPE: &'static str;
    /// Headers and trailers of an answer that is streamed.
    const STREAM_HEADERS: &'static [Header];
    /// Headers of an answer that is sent whole.
    const WHOLE_HEADERS: &'static [Header];
}

macro_rules! media {
    ($($(#[$doc:meta])* $name:ident = $type:expr, $streamed:expr, $whole:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Media for $name {
            const TYPE: &'static str = $type;
            const STREAM_HEADERS: &'static [Header] = &$streamed;
            const WHOLE_HEADERS: &'static [Header] = &$whole;
        }
    )*};
}

media! {
    /// Plain bytes: content of a file when streamed, a part of a console when sent whole.
    Bytes = "application/octet-stream", [header::FILE_STAT, header::SHA256], [header::OFFSET, header::END];
    /// A tar stream.
    Archive = "application/x-tar", [header::LEFT_OUT, header::SHA256], [];
    /// A file with holes, see [`extents`].
    Extents = extents::MEDIA_TYPE, [header::FILE_STAT, header::SHA256], [];
    /// Counters and histograms as Prometheus reads them.
    MetricsText = "text/plain", [], [];
}
