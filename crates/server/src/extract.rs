//! Reading requests, with our problems instead of the framework's.

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Json, RawQuery, Request};
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use microvm_api::query::Query;
use microvm_types::{ErrorKind, ProcessId, VmRef};
use serde::de::DeserializeOwned;

use crate::charge::Charge;
use crate::failure::Failure;
use crate::limits::{BodyMax, Limits};

/// A JSON body, within the size, time and budget of its route. With no body at all the type's default is tried by
/// reading `{}`.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        use axum::body::HttpBody as _;
        if request.body().is_end_stream() {
            return serde_json::from_str("{}").map(Self).map_err(|error| {
                Failure::invalid("body_invalid", format!("the request has no body: {error}"))
            });
        }
        let (head, body) = request.into_parts();
        let bytes = tokio::time::timeout(time(&head), collect(&head, body)).await.map_err(|_| {
            Failure::new(
                ErrorKind::Timeout,
                "body_too_slow",
                format!("the request's body did not arrive within {:?}: send it at once", time(&head)),
            )
        })??;
        match Json::from_request(Request::from_parts(head, axum::body::Body::from(bytes)), state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Failure::invalid(
                "content_type_invalid",
                "the request is not marked as JSON: send it with `Content-Type: application/json`",
            )),
            Err(error) => Err(Failure::invalid("body_invalid", error.body_text())),
        }
    }
}

/// Bytes charged for one byte of JSON: what it becomes when it is read is larger than the text.
const EXPANSION: usize = 16;

fn time(head: &Parts) -> std::time::Duration {
    head.extensions.get::<Limits>().copied().unwrap_or_default().body
}

/// Takes a body to its end. What is announced is refused or charged before anything is read.
async fn collect(head: &Parts, mut body: axum::body::Body) -> Result<Bytes, Failure> {
    use axum::body::HttpBody as _;
    use http_body_util::BodyExt as _;
    let most = head.extensions.get::<BodyMax>().map_or(microvm_api::JSON_BODY_MAX, |max| max.0);
    let charge = head.extensions.get::<Charge>();
    let mut charged = 0;
    let mut hold = |bytes: usize| {
        if bytes > most {
            return Err(Failure::too_large(format!(
                "the request is larger than {most} bytes, the most that this route takes: send large data as files"
            )));
        }
        let more = (bytes * EXPANSION).saturating_sub(charged);
        charge.map_or(Ok(()), |charge| charge.hold(more))?;
        charged += more;
        Ok(())
    };
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

/// The query, its values as bytes.
pub(crate) struct Parameters(pub(crate) Query);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let raw = RawQuery::from_request_parts(parts, state).await;
        let raw = raw.ok().and_then(|RawQuery(raw)| raw).unwrap_or_default();
        Ok(Self(Query::parse(&raw)?))
    }
}

impl Parameters {
    /// A guest path: absolute, not empty, without NUL.
    pub(crate) fn path(&self, name: &'static str) -> Result<Vec<u8>, Failure> {
        let path = self.0.required(name)?;
        if path.first() != Some(&b'/') || path.contains(&0) || path.len() > 4096 {
            return Err(Failure::invalid(
                "path_invalid",
                format!(
                    "`{}` is not a path in a guest: it must begin with `/`, hold no NUL and at most 4096 bytes",
                    String::from_utf8_lossy(&path[..path.len().min(200)])
                ),
            ));
        }
        Ok(path.to_vec())
    }
}

/// Segments of the path. One that is not UTF-8 once it is decoded is a problem of ours, not a text of the framework's.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let segments = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        segments
            .map(|axum::extract::Path(segments)| Self(segments))
            .map_err(|error| Failure::invalid("path_invalid", error.body_text()))
    }
}

/// The VM named in the path.
pub(crate) struct Vm(pub(crate) VmRef);

impl<S: Send + Sync> FromRequestParts<S> for Vm {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Ok(Self(segment(parts, state, "vm").await?.parse()?))
    }
}

/// The process named in the path.
pub(crate) struct Process(pub(crate) ProcessId);

impl<S: Send + Sync> FromRequestParts<S> for Process {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = segment(parts, state, "process").await?;
        text.parse().map(Self).map_err(|error: microvm_types::id::IdError| {
            Failure::invalid("process_id_invalid", error.to_string())
        })
    }
}

async fn segment<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<String, Failure> {
    let Path(segments) = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await?;
    let found = segments.into_iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value).ok_or_else(|| {
        Failure::new(ErrorKind::Internal, "route_incomplete", format!("this route has no segment `{name}`"))
    })
}
