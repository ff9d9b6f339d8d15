//! Bulk data in and out, with its SHA-256 behind it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Frame;
use microvm_api::files::left_out_text;
use microvm_api::operation::{Archive, Data, Media};
use microvm_api::{LEFT_OUT_HEADER, SHA256_HEADER};
use microvm_core::GuestLease;
use microvm_ports::guest::ByteStream;
use microvm_ports::{GuestError, PulledArchive};
use microvm_types::ErrorKind;
use microvm_types::files::{LeftOut, TransferSummary};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::reply::Reply;

/// A request body as a stream for a guest, and its SHA-256, which is there once the stream was taken to its end. A sum
/// in the head or in the trailers is held against what arrived; if they differ the stream ends with an error and the
/// guest keeps nothing of it. So does a caller who sends nothing for `silence` while the guest waits.
pub(crate) fn incoming(headers: &HeaderMap, body: Body, silence: Duration) -> (ByteStream, Sum) {
    let (report, reported) = oneshot::channel();
    let state = Some(Incoming { body, hash: Sha256::new(), wanted: announced(headers), report, silence });
    let stream = Box::pin(futures_util::stream::unfold(state, |state| async move {
        let mut incoming = state?;
        match incoming.next().await {
            Ok(Some(data)) => Some((Ok(data), Some(incoming))),
            Ok(None) => incoming.finish().err().map(|error| (Err(error), None)),
            Err(error) => Some((Err(error), None)),
        }
    }));
    (stream, Sum(reported))
}

struct Incoming {
    body: Body,
    hash: Sha256,
    wanted: Option<String>,
    report: oneshot::Sender<String>,
    silence: Duration,
}

impl Incoming {
    async fn frame(&mut self) -> Result<Option<Result<Frame<Bytes>, axum::Error>>, GuestError> {
        // Silence is limited, not the whole transfer: a large file on a slow line may take hours.
        tokio::time::timeout(self.silence, self.body.frame())
            .await
            .map_err(|_| GuestError::Source(format!("nothing came for {:?}: it was given up", self.silence)))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        while let Some(frame) = self.frame().await? {
            match frame.map_err(|error| GuestError::Source(error.to_string()))?.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.hash.update(&data);
                    return Ok(Some(data));
                }
                // The trailers win over the head: only at its end does a stream know the sum of what it really sent.
                Err(frame) => self.wanted = frame.trailers_ref().and_then(announced).or(self.wanted.take()),
            }
        }
        Ok(None)
    }

    fn finish(self) -> Result<(), GuestError> {
        let arrived = hex(&self.hash.finalize());
        if let Some(wanted) = self.wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&arrived)) {
            return Err(GuestError::Source(format!(
                "{wanted} was announced as its SHA-256 and {arrived} arrived"
            )));
        }
        // Whoever asked may have gone.
        let _ = self.report.send(arrived);
        Ok(())
    }
}

/// The SHA-256 of a body.
pub(crate) struct Sum(oneshot::Receiver<String>);

impl Sum {
    /// The finished body, of which so many bytes were taken.
    pub(crate) async fn of(self, bytes: u64) -> Result<TransferSummary, Failure> {
        let sha256 = self.0.await.map_err(|_| {
            Failure::new(ErrorKind::Internal, "transfer_incomplete", "the data was not taken to its end")
        })?;
        Ok(TransferSummary { bytes, sha256, left_out: LeftOut::default() })
    }
}

fn announced(headers: &HeaderMap) -> Option<String> {
    headers.get(SHA256_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// A stream of a guest as an answer, with its SHA-256 as a trailer. The VM counts as used until it was all read.
pub(crate) fn outgoing<M: Media>(data: ByteStream, lease: GuestLease, headers: HeaderMap) -> Reply<Data<M>> {
    let body = Outgoing { data, hash: Sha256::new(), ended: false, left_out: None, _lease: Some(lease) };
    Reply::data(headers, Body::new(body)).with(header::TRAILER, HeaderValue::from_static(SHA256_HEADER))
}

/// Files of an image as an answer, with the SHA-256 as a trailer.
pub(crate) fn outgoing_files(data: ByteStream) -> Reply<Data<Archive>> {
    let body = Outgoing { data, hash: Sha256::new(), ended: false, left_out: None, _lease: None };
    let headers = HeaderMap::new();
    Reply::data(headers, Body::new(body)).with(header::TRAILER, HeaderValue::from_static(SHA256_HEADER))
}

/// The same for an archive, with what is not in it as a second trailer.
pub(crate) fn outgoing_archive(archive: PulledArchive, lease: Option<GuestLease>) -> Reply<Data<Archive>> {
    let PulledArchive { data, left_out } = archive;
    let body = Outgoing { data, hash: Sha256::new(), ended: false, left_out: Some(left_out), _lease: lease };
    let mut headers = HeaderMap::new();
    for name in [SHA256_HEADER, LEFT_OUT_HEADER] {
        headers.append(header::TRAILER, HeaderValue::from_static(name));
    }
    Reply::data(headers, Body::new(body))
}

struct Outgoing {
    data: ByteStream,
    hash: Sha256,
    ended: bool,
    left_out: Option<oneshot::Receiver<LeftOut>>,
    _lease: Option<GuestLease>,
}

// No `size_hint`, though the length of a file is known: hyper sends trailers after chunked bodies only.
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
                // It was sent before the data ended, or never will be.
                let left_out = self.left_out.as_mut().and_then(|left_out| left_out.try_recv().ok());
                if let Some(value) =
                    left_out.and_then(|left_out| HeaderValue::from_str(&left_out_text(&left_out)).ok())
                {
                    trailers.insert(HeaderName::from_static(LEFT_OUT_HEADER), value);
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
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

    /// The SHA-256 of "abc": the first example of FIPS 180-2, appendix B.
    const RIGHT: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    async fn collect(announce: Option<&str>) -> Result<Vec<u8>, GuestError> {
        let mut headers = HeaderMap::new();
        if let Some(sum) = announce {
            headers.insert(SHA256_HEADER, HeaderValue::from_str(sum).unwrap());
        }
        let (mut stream, sum) = incoming(&headers, Body::from("abc"), Duration::MAX);
        let mut all = Vec::new();
        while let Some(part) = stream.next().await {
            all.extend_from_slice(&part?);
        }
        let summary = sum.of(3).await.unwrap();
        assert_eq!(summary.sha256, RIGHT);
        Ok(all)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_wrong_sum_ends_the_stream_with_an_error() {
        assert_eq!(collect(None).await.unwrap(), b"abc");
        assert_eq!(collect(Some(RIGHT)).await.unwrap(), b"abc");
        assert!(matches!(collect(Some("00")).await, Err(GuestError::Source(_))));
    }
}
