//! Errors as answers.

use axum::extract::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use microvm_api::Problem;
use microvm_api::operation::PathError;
use microvm_api::query::{FilterError, GuestPathError, QueryError};
use microvm_core::ServiceError;
use microvm_ports::{GuestError, StorageError};
use microvm_types::{ErrorKind, NameError};

/// A request that did not succeed. The problem travels with the answer, so that the outermost layer can add the id of
/// the request to it.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

impl Failure {
    pub(crate) fn new(kind: ErrorKind, code: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(kind, code, detail)))
    }

    pub(crate) fn invalid(code: &str, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, code, detail)
    }

    /// A body beyond the limit of its route: 413.
    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        let mut failure = Self::invalid("body_too_large", detail);
        // No kind of error has this status: for clients that look at kinds it is an invalid request.
        failure.0.status = 413;
        failure
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = render(&self.0);
        response.extensions_mut().insert(*self.0);
        response
    }
}

/// A problem as an answer.
pub(crate) fn render(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(problem)).into_response();
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        let mut problem = Problem::new(error.kind(), error.code(), explained(&error));
        if let ServiceError::Invalid { field, .. } | ServiceError::OverLimit { field, .. } = &error {
            problem.field = Some((*field).to_owned());
        }
        Self(Box::new(problem.with_remedies(error.remedies())))
    }
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        ServiceError::from(error).into()
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        ServiceError::from(error).into()
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::invalid("vm_name_invalid", error.to_string())
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        Self(Box::new(error.into()))
    }
}

impl From<GuestPathError> for Failure {
    fn from(error: GuestPathError) -> Self {
        Self::invalid("path_invalid", error.to_string())
    }
}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Self {
        Self::invalid("filter_invalid", error.to_string())
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        Self::invalid("query_invalid", error.to_string())
    }
}

/// The message and its causes: no message holds what it names as its source.
fn explained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
