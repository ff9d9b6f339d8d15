//! The body of every error (RFC 9457).

use microvm_types::ErrorKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::advice::Advice;

/// Description of a failure: class, reason, remedies. `error` repeats `code` and `message` repeats `detail`, because
/// existing clients read those names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI reference that names this kind of problem: `urn:microvm:problem:` and the code.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The class of failure in words; equal for all problems of one kind.
    pub title: String,
    /// HTTP status code.
    pub status: u16,
    /// Description of the failure and its reason, and of the remedy where no request is one.
    pub detail: String,
    /// Stable code for programs, for example `vm_name_taken`.
    pub code: String,
    /// The class of failure.
    pub kind: ErrorKind,
    /// True if the unchanged request may succeed later.
    pub retryable: bool,
    /// Equal to `code`.
    pub error: String,
    /// Equal to `detail`.
    pub message: String,
    /// Id of the request that failed, to be found in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Field of the request that it is about; `detail` begins with its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Remedies, the most likely one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Advice>,
}

impl Problem {
    /// A problem of a kind, with its stable code and its explanation.
    #[must_use]
    pub fn new(kind: ErrorKind, code: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            type_uri: format!("urn:microvm:problem:{code}"),
            title: title(kind).to_owned(),
            status: kind.http_status(),
            code: code.to_owned(),
            kind,
            retryable: kind.retry_helps(),
            error: code.to_owned(),
            message: detail.clone(),
            detail,
            request_id: None,
            field: None,
            remedies: Vec::new(),
        }
    }

    /// Adds remedies.
    #[must_use]
    pub fn with_remedies(mut self, remedies: impl IntoIterator<Item = impl Into<Advice>>) -> Self {
        self.remedies = remedies.into_iter().map(Into::into).collect();
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

const fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "The request is not valid",
        ErrorKind::Unauthenticated => "The caller is not known",
        ErrorKind::Forbidden => "The caller may not do this",
        ErrorKind::NotFound => "There is no such thing",
        ErrorKind::Conflict => "The request clashes with the present state",
        ErrorKind::Unsupported => "This cannot be done here",
        ErrorKind::Exhausted => "A limit or resource is used up",
        ErrorKind::Unavailable => "Something needed is not available right now",
        ErrorKind::Timeout => "A deadline passed",
        ErrorKind::Internal => "Something failed that should not have failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_both_dialects() {
        let problem = Problem::new(ErrorKind::Conflict, "vm_name_taken", "the name `a` is taken");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:microvm:problem:vm_name_taken");
        assert_eq!(json["detail"], json["message"]);
        assert_eq!(json["code"], json["error"]);
        assert_eq!((json["status"].as_u64(), json["retryable"].as_bool()), (Some(409), Some(false)));
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }
}
