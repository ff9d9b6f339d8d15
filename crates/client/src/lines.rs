//! Answers that come line by line.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::error::ClientError;

/// Longest line that is read, in bytes.
const LINE_MAX: usize = 16 << 20;

/// Values that arrive as newline-delimited JSON. Dropping it ends the work on the server.
#[derive(Debug)]
pub struct Lines<T> {
    /// Name of the operation.
    action: &'static str,
    body: Incoming,
    buffer: BytesMut,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(crate) fn new(response: Response<Incoming>, action: &'static str) -> Self {
        let body = response.into_body();
        Self { action, body, buffer: BytesMut::new(), kind: std::marker::PhantomData }
    }

    /// The next value; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks or the body ends in the middle of a line, [`ClientError::Answer`] if a line cannot be read.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(searched + end);
                self.buffer.advance(1);
                searched = 0;
                if line.is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| ClientError::Answer(error.to_string()));
            }
            // Bytes that were searched are not searched again: long lines come in many frames.
            searched = self.buffer.len();
            if searched > LINE_MAX {
                return Err(ClientError::Answer(format!("a line of more than {LINE_MAX} bytes")));
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                // Every line ends with a newline: what ends without one was cut off, and is no whole answer.
                None => {
                    let detail = "its answer ended in the middle of a line".to_owned();
                    return Err(ClientError::Lost { action: self.action, detail });
                }
                Some(frame) => {
                    let frame = frame.map_err(ClientError::lost(self.action))?;
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
