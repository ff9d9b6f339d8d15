//! Bulk data in and out, with its SHA-256 behind it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Frame;
use microvm_api::SHA256_HEADER;
use microvm_core::GuestLease;
use microvm_ports::GuestError;
use microvm_ports::guest::ByteStream;
use sha2::{Digest, Sha256};

/// A request body as a stream for a guest. A SHA-256 in the head or in the trailers is held against what arrived; if
/// they differ the stream ends with an error and the guest keeps nothing of it.
pub(crate) fn incoming(headers: &HeaderMap, body: Body) -> ByteStream {
    let state = (body, Sha256::new(), announced(headers), false);
    Box::pin(futures_util::stream::unfold(state, |(mut body, mut hash, mut wanted, ended)| async move {
        if ended {
            return None;
        }
        loop {
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        hash.update(&data);
                        return Some((Ok(data), (body, hash, wanted, false)));
                    }
                    Err(frame) => wanted = frame.trailers_ref().and_then(announced).or(wanted),
                },
                Some(Err(error)) => {
                    return Some((Err(GuestError::Source(error.to_string())), (body, hash, wanted, true)));
                }
                None => {
                    let arrived = hex(&hash.clone().finalize());
                    let wrong = wanted.take().filter(|wanted| !wanted.eq_ignore_ascii_case(&arrived))?;
                    let error = format!("{wrong} was announced as its SHA-256 and {arrived} arrived");
                    return Some((Err(GuestError::Source(error)), (body, hash, None, true)));
                }
            }
        }
    }))
}

fn announced(headers: &HeaderMap) -> Option<String> {
    headers.get(SHA256_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// A stream of a guest as an answer, with its SHA-256 as a trailer. The VM counts as used until it was all read.
pub(crate) fn outgoing(data: ByteStream, lease: GuestLease, headers: HeaderMap) -> Response {
    let body = Outgoing { data, hash: Sha256::new(), ended: false, _lease: lease };
    let mut response = (headers, Body::new(body)).into_response();
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static(SHA256_HEADER));
    response
}

struct Outgoing {
    data: ByteStream,
    hash: Sha256,
    ended: bool,
    _lease: GuestLease,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = GuestError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GuestError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.data.poll_next_unpin(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(bytes))) => {
                self.hash.update(&bytes);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Err(error))) => {
                // The connection is cut: without the last chunk nobody can take this for a good end.
                self.ended = true;
                tracing::warn!(%error, "a transfer broke off");
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.ended = true;
                let sum = hex(&self.hash.finalize_reset());
                let mut trailers = HeaderMap::new();
                if let Ok(value) = HeaderValue::from_str(&sum) {
                    trailers.insert(HeaderName::from_static(SHA256_HEADER), value);
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(announce: Option<&str>) -> Result<Vec<u8>, GuestError> {
        let mut headers = HeaderMap::new();
        if let Some(sum) = announce {
            headers.insert(SHA256_HEADER, HeaderValue::from_str(sum).unwrap());
        }
        let mut stream = incoming(&headers, Body::from("abc"));
        let mut all = Vec::new();
        while let Some(part) = stream.next().await {
            all.extend_from_slice(&part?);
        }
        Ok(all)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_wrong_sum_ends_the_stream_with_an_error() {
        // The SHA-256 of "abc" is the first example of FIPS 180-2, appendix B.
        let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(collect(None).await.unwrap(), b"abc");
        assert_eq!(collect(Some(right)).await.unwrap(), b"abc");
        assert!(matches!(collect(Some("00")).await, Err(GuestError::Source(_))));
    }
}
