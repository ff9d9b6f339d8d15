//! The client and how a request is made.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::{Request, Response, StatusCode};
use microvm_api::Problem;
use microvm_api::operation::{Method, Operation, Retry};
use microvm_types::ErrorKind;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::connection::Connections;
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::transfer::{self, Body};

/// Largest JSON answer that is read, in bytes: the longest is a listing of 100,000 files.
const ANSWER_MAX: usize = 256 << 20;

/// A client of one server; cheap to clone, may be used by many tasks at once.
#[derive(Debug, Clone)]
pub struct Client {
    connections: Arc<Connections>,
}

impl Client {
    /// A client for the server behind a unix socket. Nothing is opened yet.
    #[must_use]
    pub fn new(socket: impl Into<Utf8PathBuf>) -> Self {
        Self::at(Endpoint::Socket(socket.into()))
    }

    /// A client whose every connection is the standard input and output of a program: program and arguments, for example
    /// `ssh`. Nothing is started yet. Standard error of the program is that of this process.
    #[must_use]
    pub fn through(program: Vec<String>) -> Self {
        Self::at(Endpoint::Program(program))
    }

    fn at(endpoint: Endpoint) -> Self {
        Self { connections: Arc::new(Connections::new(endpoint)) }
    }

    /// A connection to the server without any protocol on it, for whoever passes bytes on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn dial(&self) -> Result<UnixStream, ClientError> {
        self.connections.stream().await
    }

    /// Path of the server's socket; the name of the program if one leads there.
    #[must_use]
    pub fn socket(&self) -> &Utf8Path {
        self.connections.path()
    }

    /// Sends the request of an operation and checks that it succeeded. A request that its row calls safe, and that has no
    /// body, may be sent a second time: see [`Connections::send`].
    pub(crate) async fn request<O: Operation>(
        &self,
        uri: &str,
        content_type: Option<&'static str>,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let make = |body: Body| {
            let mut request = Request::builder()
                .method(standard(O::METHOD))
                .uri(uri)
                // HTTP/1.1 demands a host (RFC 9112, section 3.2); the server reads none.
                .header(hyper::header::HOST, "localhost")
                // Says that trailers are read here (RFC 9110, section 6.5.1): without it hyper's server keeps them
                // back.
                .header(hyper::header::TE, "trailers");
            if let Some(content_type) = content_type {
                request = request.header(hyper::header::CONTENT_TYPE, content_type);
            }
            if transfer::has_trailer(&body) {
                request = request.header(hyper::header::TRAILER, microvm_api::SHA256_HEADER);
            }
            request.body(body).map_err(|error| ClientError::Answer(error.to_string()))
        };
        let may_repeat = O::RETRY == Retry::Safe && body.is_end_stream();
        // Made before the first one is sent, which takes its body away.
        let again = if may_repeat { Some(make(transfer::empty())?) } else { None };
        let action = O::NAME;
        let response = self.connections.send(make(body)?, again, action).await?;
        if response.status().is_success() { Ok(response) } else { Err(problem(response, action).await) }
    }
}

const fn standard(method: Method) -> hyper::Method {
    match method {
        Method::Get => hyper::Method::GET,
        Method::Post => hyper::Method::POST,
        Method::Put => hyper::Method::PUT,
        Method::Delete => hyper::Method::DELETE,
    }
}

pub(crate) async fn read_json<T: DeserializeOwned>(
    response: Response<Incoming>,
    action: &'static str,
) -> Result<T, ClientError> {
    let bytes = read_all(response, action).await?;
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.to_string()))
}

pub(crate) async fn read_all(
    response: Response<Incoming>,
    action: &'static str,
) -> Result<bytes::Bytes, ClientError> {
    // A server of another version, or none at all, must not fill the memory of its client.
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    Ok(body.map_err(|error| ClientError::Lost { action, detail: error.to_string() })?.to_bytes())
}

/// Makes an error of an answer that is not a success.
async fn problem(response: Response<Incoming>, action: &'static str) -> ClientError {
    let status = response.status();
    match read_all(response, action).await {
        Ok(bytes) => problem_from(status, &bytes),
        Err(error) => error,
    }
}

/// Reads a problem body; an answer without one is described by its status.
pub(crate) fn problem_from(status: StatusCode, body: &[u8]) -> ClientError {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| {
        let kind = ErrorKind::ALL.into_iter().find(|kind| kind.http_status() == status.as_u16());
        let kind = kind.unwrap_or(ErrorKind::Internal);
        Problem::new(kind, "unexplained", format!("the server answered {status} without saying why"))
    });
    ClientError::Problem(Box::new(problem))
}
