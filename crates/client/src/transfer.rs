//! Bodies that are streamed, with a SHA-256 trailer in both directions.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, body};
use microvm_api::{FILE_STAT_HEADER, LEFT_OUT_HEADER, SHA256_HEADER};
use microvm_types::extents::{Content, ExtentsReader};
use microvm_types::files::{FileStat, LeftOut};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::error::ClientError;

/// Failure of a body's source; ends the request.
pub(crate) type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A request body.
#[derive(Debug)]
pub struct Body {
    inner: UnsyncBoxBody<Bytes, SourceError>,
    trailer: bool,
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pub(crate) fn empty() -> Body {
    full(Vec::new())
}

pub(crate) fn full(bytes: Vec<u8>) -> Body {
    let inner = http_body_util::Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync();
    Body { inner, trailer: false }
}

pub(crate) const fn has_trailer(body: &Body) -> bool {
    body.trailer
}

/// A body made of a stream; what comes back resolves to the SHA-256 of all of it once it was sent.
pub(crate) fn hashed<S>(data: S) -> (Body, oneshot::Receiver<String>)
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    let (report, reported) = oneshot::channel();
    let inner = Hashed { data: Box::pin(data), hash: Sha256::new(), report: Some(report) };
    (Body { inner: inner.boxed_unsync(), trailer: true }, reported)
}

struct Hashed {
    data: Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>,
    hash: Sha256,
    /// Taken when the end was reached.
    report: Option<oneshot::Sender<String>>,
}

impl HttpBody for Hashed {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        let this = &mut *self;
        // The trailers were the last frame.
        if this.report.is_none() {
            return Poll::Ready(None);
        }
        match this.data.as_mut().poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(bytes))) => {
                this.hash.update(&bytes);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                // In a trailer: the sum is known only when all bytes have been sent.
                let sum = hex(&this.hash.finalize_reset());
                let mut trailers = HeaderMap::new();
                if let Ok(value) = HeaderValue::from_str(&sum) {
                    trailers.insert(HeaderName::from_static(SHA256_HEADER), value);
                }
                if let Some(report) = this.report.take() {
                    // Nobody waits for it if the request was dropped.
                    let _ = report.send(sum);
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A body that is being received. Its end is only reported as a good end if the server's SHA-256 agrees.
#[derive(Debug)]
pub struct Download {
    headers: HeaderMap,
    /// Name of the operation.
    action: &'static str,
    body: Incoming,
    hash: Sha256,
    announced: Option<String>,
    left_out: Option<LeftOut>,
    finished: bool,
}

impl Download {
    pub(crate) fn new(response: Response<Incoming>, action: &'static str) -> Self {
        let (head, body) = response.into_parts();
        Self {
            headers: head.headers,
            action,
            body,
            hash: Sha256::new(),
            announced: None,
            left_out: None,
            finished: false,
        }
    }

    /// The description in the head of a file.
    pub(crate) fn file_stat(&self) -> Result<FileStat, ClientError> {
        let stat = self.headers.get(FILE_STAT_HEADER).map(HeaderValue::as_bytes);
        let stat =
            stat.ok_or_else(|| ClientError::Answer("a file came without its description".to_owned()))?;
        serde_json::from_slice(stat).map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// The next bytes; `None` at an end that was verified.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if it ends early, [`ClientError::Damaged`] if it is not what the server sent.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let action = self.action;
        while !self.finished {
            let Some(frame) = self.body.frame().await else {
                self.finished = true;
                break;
            };
            let frame: body::Frame<Bytes> = frame.map_err(ClientError::lost(action))?;
            match frame.into_data() {
                // An empty frame is no end: that is told by the trailers.
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    self.hash.update(&bytes);
                    return Ok(Some(bytes));
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let sum = trailers.get(SHA256_HEADER).and_then(|value| value.to_str().ok());
                    self.announced = sum.map(str::to_owned);
                    let left_out =
                        trailers.get(LEFT_OUT_HEADER).map(|text| serde_json::from_slice(text.as_bytes()));
                    self.left_out =
                        left_out.transpose().map_err(|error| ClientError::Answer(error.to_string()))?;
                }
            }
        }
        // A copy: whoever asks again after the end gets the same answer.
        let received = hex(&self.hash.clone().finalize());
        // Without the sum of the sender an end is not a good end: the connection may have been cut between two frames.
        match &self.announced {
            Some(sent) if *sent == received => Ok(None),
            Some(sent) => Err(ClientError::Damaged { sent: sent.clone(), received }),
            None => Err(ClientError::Lost { action, detail: "the end came without a checksum".to_owned() }),
        }
    }

    /// Entries that an archive left out, known after its end; `None` where nobody told: the VM's agent or the server is older
    /// than this.
    #[must_use]
    pub const fn left_out(&self) -> Option<&LeftOut> {
        self.left_out.as_ref()
    }
}

/// A file that is being received, its holes told by their length. Its end is only reported as a good end if the server's
/// SHA-256 of the body agrees.
#[derive(Debug)]
pub struct ContentDownload {
    body: Download,
    part: Bytes,
    reader: ExtentsReader,
}

impl ContentDownload {
    pub(crate) fn new(body: Download) -> Self {
        Self { body, part: Bytes::new(), reader: ExtentsReader::default() }
    }

    /// The next piece; `None` at an end that was verified.
    ///
    /// # Errors
    /// Those of [`Download::next`], and [`ClientError::Answer`] if it is not a file with holes.
    pub async fn next(&mut self) -> Result<Option<Content>, ClientError> {
        let wrong = |error: microvm_types::extents::ExtentsError| ClientError::Answer(error.to_string());
        loop {
            if let Some(piece) = self.reader.next(&mut self.part).map_err(wrong)? {
                return Ok(Some(piece));
            }
            match self.body.next().await? {
                Some(part) => self.part = part,
                None => return self.reader.finish().map(|_| None).map_err(wrong),
            }
        }
    }
}
