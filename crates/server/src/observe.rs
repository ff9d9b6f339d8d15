//! Ids and logs of requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::header::ALLOW;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use microvm_api::{Problem, REQUEST_ID_HEADER};
use tracing::Instrument as _;

use crate::failure::render;

/// Longest id that is taken over from a caller.
const ID_MAX: usize = 64;

/// Makes ids that differ within one server and, by its start time, between servers.
#[derive(Debug)]
pub(crate) struct RequestIds {
    start: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn starting_at(now_ms: i64) -> Self {
        Self { start: now_ms.unsigned_abs(), next: AtomicU64::new(1) }
    }

    fn next(&self) -> String {
        format!("{:x}-{:x}", self.start, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// The id of a request, for whatever is noted of it.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// True if a route concerns the inside of a guest.
fn is_in_guest(route: &str) -> bool {
    let below = route.strip_prefix(microvm_api::PREFIX).and_then(|route| route.strip_prefix("/vms/{vm}/"));
    let part = below.and_then(|below| below.split('/').next());
    // To end a machine is no access to what is in it.
    !route.ends_with("/guest/shutdown")
        && part.is_some_and(|part| {
            ["guest", "files", "archive", "export", "changes", "exec", "shell", "processes", "contexts"]
                .contains(&part)
        })
}

/// Gives the request an id (the caller's, if it is plain and short), logs it, and puts the id into the answer.
pub(crate) async fn observe(ids: std::sync::Arc<RequestIds>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let plain = |id: &&str| {
        (1..=ID_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let id = given.filter(plain).map_or_else(|| ids.next(), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    // The query is left out: it holds names of users' files.
    let path = request.uri().path().to_owned();
    let span = tracing::info_span!("request", id, %method, path, route);
    async move {
        let begun = Instant::now();
        let mut response = next.run(request).await;
        let problem = response.extensions_mut().remove::<Problem>();
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let status = response.status().as_u16();
        match problem {
            Some(mut problem) => {
                let code = problem.code.as_str();
                // Details of what is done in a guest name its files, users and commands: they are the caller's.
                let detail = if is_in_guest(&route) { "" } else { problem.detail.as_str() };
                if status >= 500 {
                    tracing::warn!(status, took_us, code, detail, "failed");
                } else {
                    tracing::info!(status, took_us, code, detail, "refused");
                }
                problem.request_id = Some(id.clone());
                // Which methods the path has.
                let allow = response.headers_mut().remove(ALLOW);
                // Written again: the body went into the first answer without the id.
                response = render(&problem);
                if let Some(allow) = allow {
                    response.headers_mut().insert(ALLOW, allow);
                }
            }
            None => tracing::debug!(status, took_us, "answered"),
        }
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(HeaderName::from_static(REQUEST_ID_HEADER), value);
        }
        response
    }
    .instrument(span)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_into_a_guest_is_known_as_one() {
        for route in microvm_api::operations::all() {
            let path = format!("{}{}", microvm_api::PREFIX, route.path);
            let permission = route.permission.as_str();
            let outside = route.path.contains("/ports/") || route.path.ends_with("/console");
            assert_eq!(
                is_in_guest(&path),
                permission.starts_with("guest") && !outside,
                "{path} {permission}"
            );
        }
    }
}
