//! Requests, read as their operation says, with our problems instead of the framework's.

use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::rejection::JsonRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequest as _, FromRequestParts as _, Json, RawPathParams, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use microvm_api::exec::FRAME_MAX;
use microvm_api::meant::with_meant;
use microvm_api::operation::{self as api, Media, Operation, PathParameters as _, RequestBody};
use microvm_types::ErrorKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::app::App;
use crate::caller::authorised;
use crate::charge::Charge;
use crate::failure::Failure;
use crate::long_fields;
use crate::observe::RequestId;
use crate::session::Session;

/// A request for one operation by a caller who may make it.
pub(crate) struct Call<O: Operation>
where
    O::Body: Taken,
{
    pub(crate) path: O::Path,
    pub(crate) query: O::Query,
    pub(crate) body: <O::Body as Taken>::Value,
    pub(crate) charge: Charge,
}

impl<O: Operation> Call<O>
where
    O::Body: Taken,
{
    /// Lets the caller in, then reads path, query and body.
    pub(crate) async fn read(app: &Arc<App>, request: Request) -> Result<(Session, Self), Failure> {
        let (mut head, body) = request.into_parts();
        // First of all: the body of one who may not ask costs no memory.
        let caller = authorised(&*app.authenticator, O::OPERATION, &head).map_err(Failure)?;
        let request = head.extensions.get::<RequestId>().map_or("", |id| id.0.as_str());
        let session = Session::new(app, &caller, request, O::OPERATION);
        let charge = head.extensions.get::<Charge>().cloned().ok_or_else(|| {
            Failure::new(ErrorKind::Internal, "route_incomplete", "this request has no share of the memory")
        })?;
        let path = if O::Path::NAMES.is_empty() {
            O::Path::read(std::iter::empty())
        } else {
            let segments = RawPathParams::from_request_parts(&mut head, &()).await;
            let segments = segments.map_err(|error| Failure::invalid("path_invalid", error.body_text()))?;
            O::Path::read(segments.iter().map(|(_, text)| text))
        }?;
        let query = microvm_api::query::read(head.uri.query().unwrap_or_default())?;
        let limit = app.limits.body;
        let body = O::Body::take(Incoming { head, body, charge: charge.clone(), limit }).await?;
        Ok((session, Self { path, query, body, charge }))
    }
}

/// The rest of a request whose path and query were read.
pub(crate) struct Incoming {
    head: Parts,
    body: axum::body::Body,
    charge: Charge,
    /// Time for the whole of a JSON body.
    limit: std::time::Duration,
}

/// Extraction of a body from a request.
pub(crate) trait Taken: RequestBody {
    /// Type that the handler gets.
    type Value: Send;

    /// Reads it, or takes over the stream.
    fn take(request: Incoming) -> impl Future<Output = Result<Self::Value, Failure>> + Send;
}

impl Taken for api::Nothing {
    type Value = ();

    async fn take(_request: Incoming) -> Result<(), Failure> {
        Ok(())
    }
}

/// JSON bodies, all read alike within the bounds of their type.
macro_rules! taken_as_json {
    ($($body:ident),*) => {$(
        impl<T: Serialize + DeserializeOwned + ToSchema + Send + 'static> Taken for api::$body<T> {
            type Value = T;

            async fn take(request: Incoming) -> Result<T, Failure> {
                request.json::<Self, T>().await
            }
        }
    )*};
}

taken_as_json!(Json, LongJson, CommandJson, FileJson);

/// Bytes that are taken as they come; `headers` may announce their SHA-256.
pub(crate) struct Upload {
    pub(crate) headers: HeaderMap,
    pub(crate) data: axum::body::Body,
}

impl<M: Media> Taken for api::Data<M> {
    type Value = Upload;

    async fn take(request: Incoming) -> Result<Upload, Failure> {
        Ok(Upload { headers: request.head.headers, data: request.body })
    }
}

impl Taken for api::Handshake {
    type Value = WebSocketUpgrade;

    async fn take(mut request: Incoming) -> Result<WebSocketUpgrade, Failure> {
        let upgrade =
            WebSocketUpgrade::from_request_parts(&mut request.head, &()).await.map_err(|error| {
                let detail = format!("this route speaks WebSocket: {}", error.body_text());
                Failure::invalid("websocket_needed", detail)
            })?;
        Ok(upgrade
            .max_message_size(FRAME_MAX + 1024)
            .max_frame_size(FRAME_MAX + 1024)
            .max_write_buffer_size(4 * FRAME_MAX))
    }
}

impl Incoming {
    /// A JSON body within size, time and budget. With no body at all the type's default is tried by reading `{}`.
    async fn json<B: RequestBody, T: DeserializeOwned>(self) -> Result<T, Failure> {
        let Self { head, body, charge, limit } = self;
        // Whoever leaves out the body leaves out its content type too, which the extractor below would demand.
        if body.is_end_stream() {
            return serde_json::from_str("{}").map_err(|error| {
                Failure::invalid("body_invalid", format!("the request has no body: {error}"))
            });
        }
        let bytes = tokio::time::timeout(limit, collect::<B>(body, &charge)).await.map_err(|_| {
            Failure::new(
                ErrorKind::Timeout,
                "body_too_slow",
                format!("the request's body did not arrive within {limit:?}: send it at once"),
            )
        })??;
        if let Some(long) = B::LONG_FIELDS.filter(|_| bytes.len() > api::SHORT_FIELD_MAX) {
            long_fields::check(&bytes, long)?;
        }
        match Json::from_request(Request::from_parts(head, axum::body::Body::from(bytes)), &()).await {
            Ok(Json(value)) => Ok(value),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Failure::invalid(
                "content_type_invalid",
                "the request is not marked as JSON: send it with `Content-Type: application/json`",
            )),
            // A parser repeats what it did not expect, which may be all of the body.
            Err(error) => Err(Failure::invalid("body_invalid", with_meant(shortened(error.body_text())))),
        }
    }
}

/// The beginning of a text that may be as long as a request.
fn shortened(mut text: String) -> String {
    const MOST: usize = 1_000;
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.shrink_to_fit();
        text.push('…');
    }
    text
}

/// Takes a body to its end. What is announced is refused or charged before anything is read.
async fn collect<B: RequestBody>(mut body: axum::body::Body, charge: &Charge) -> Result<Bytes, Failure> {
    let (most, mut charged) = (B::JSON_MAX, 0);
    let mut hold = |bytes: usize| {
        if bytes > most {
            return Err(Failure::too_large(format!(
                "the request is larger than {most} bytes, the most that this route takes: send large data as files"
            )));
        }
        let more = B::held(bytes).saturating_sub(charged);
        charge.hold(more)?;
        charged += more;
        Ok(())
    };
    // Before the first byte: a body that is too large by its own word is not waited for.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    hold(announced)?;
    let mut bytes = BytesMut::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::invalid("body_invalid", error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            hold(bytes.len() + data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}
