//! Bulk data: zeros travel as their count. What crosses is hashed by whoever hands it over.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use microvm_ports::GuestError;
use microvm_ports::content::{self, Content, ContentStream};
use microvm_ports::guest::ByteStream;
use microvm_protocol::messages::{self, Reply, Written};
use microvm_protocol::mux::{Incoming, StreamError, StreamHandle};
use microvm_types::files::{LeftOut, MAX_LEFT_OUT};
use tokio::sync::oneshot;

use crate::channel::Channel;
use crate::sanitize;

/// Zeros are looked for in blocks of this size: a page, the unit of holes.
const BLOCK: usize = 4096;
/// Zeros to compare blocks with.
const ZEROS: &[u8] = &[0; 64 * 1024];
/// Most bytes one transfer from a guest may bring, zeros counted in full: the largest file of Linux's file systems.
const MOST_BYTES: u64 = 16 << 40;

/// Action of a guest that receives data, for errors.
const TAKE: &str = "take more of the data";

/// Sends content, then the end, and takes the guest's confirmation, whose number of bytes is the right one.
pub(crate) async fn push(
    channel: &Channel,
    stream: &StreamHandle,
    mut data: ContentStream,
) -> Result<Written, GuestError> {
    let mut bytes = 0u64;
    let mut zeros = 0u64;
    let sent = async {
        while let Some(part) = data.next().await {
            // The guest drops what it has when the stream is dropped before its end.
            let part = part.map_err(GuestError::of_source)?;
            bytes = bytes
                .checked_add(part.length())
                .ok_or_else(|| GuestError::Source("the content is longer than any file".to_owned()))?;
            match part {
                // Within `bytes`, which did not overflow.
                Content::Hole(count) => zeros += count,
                Content::Data(part) => {
                    let sent = async {
                        send(stream, part, &mut zeros).await.map_err(|error| channel.stream_failed(error))
                    };
                    channel.step(TAKE, sent).await?;
                }
            }
        }
        let rest = async { flush(stream, &mut zeros).await.map_err(|error| channel.stream_failed(error)) };
        channel.step(TAKE, rest).await
    };
    sent.await?;
    stream.end();
    let Reply::Written(written) = channel.step("confirm the transfer", channel.reply(stream)).await? else {
        return Err(channel.broken("the guest does not confirm a transfer"));
    };
    if written.bytes != bytes {
        return Err(channel.broken("the guest confirms another number of bytes than were sent"));
    }
    Ok(written)
}

async fn flush(stream: &StreamHandle, zeros: &mut u64) -> Result<(), StreamError> {
    let count = std::mem::take(zeros);
    if count == 0 { Ok(()) } else { stream.send_zeros(count).await }
}

/// Sends one portion; blocks of zeros are only counted.
async fn send(stream: &StreamHandle, mut part: Bytes, zeros: &mut u64) -> Result<(), StreamError> {
    while !part.is_empty() {
        // A portion ends anywhere; a piece of zeros at its end is counted too, or holes would fray at every portion.
        let run: usize = part.chunks(BLOCK).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        if run > 0 {
            *zeros += run as u64;
            part = part.split_off(run);
            continue;
        }
        let data: usize = part.chunks(BLOCK).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        flush(stream, zeros).await?;
        let rest = part.split_off(data);
        stream.send_data(part).await?;
        part = rest;
    }
    Ok(())
}

fn is_zero(block: &[u8]) -> bool {
    // Nearly all blocks that are not zero show it at once; the rest compares as fast as memory.
    block.first() == Some(&0) && block == &ZEROS[..block.len()]
}

/// Content of a stream; fails if the guest sends more than `limit` bytes, zeros counted in full.
pub(crate) fn pull(channel: Arc<Channel>, stream: StreamHandle, limit: Option<u64>) -> ContentStream {
    content_of(Pull { channel, stream, left: limit.unwrap_or(MOST_BYTES), report: Report::None })
}

/// The bytes of an archive, and what its end says of what is not in it.
pub(crate) fn pull_archive(
    channel: Arc<Channel>,
    stream: StreamHandle,
) -> (ByteStream, oneshot::Receiver<LeftOut>) {
    let (report, reported) = oneshot::channel();
    let pull = Pull { channel, stream, left: MOST_BYTES, report: Report::Awaited(report) };
    (content::expanded(content_of(pull)), reported)
}

fn content_of(pull: Pull) -> ContentStream {
    Box::pin(futures::stream::unfold(Some(pull), |state| async move {
        let mut pull = state?;
        // Frames that hold nothing are no step.
        let channel = Arc::clone(&pull.channel);
        match channel.step("send more of the data", pull.next()).await {
            Ok(Some(content)) => Some((Ok(content), Some(pull))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// The guest's list of what it left out, made harmless: paths of bearable length, no more of them than are promised.
pub(crate) fn left_out(list: messages::LeftOut) -> LeftOut {
    let mut known = LeftOut::default();
    for entry in list.entries.iter().take(MAX_LEFT_OUT) {
        let path = sanitize::shorten(&sanitize::path(&entry.path).0, 300);
        let reason = sanitize::shorten(&sanitize::clean(&entry.reason), 200);
        known.add(path, reason);
    }
    known.count = known.count.max(list.count);
    known
}

/// State of the report about entries that were left out.
enum Report {
    None,
    Awaited(oneshot::Sender<LeftOut>),
    /// It came; it is the last thing of its stream.
    Came,
}

struct Pull {
    channel: Arc<Channel>,
    stream: StreamHandle,
    left: u64,
    report: Report,
}

impl Pull {
    async fn next(&mut self) -> Result<Option<Content>, GuestError> {
        loop {
            let came = self.stream.receive().await.map_err(|error| self.channel.stream_failed(error))?;
            let content = match came {
                None => return Ok(None),
                Some(Incoming::Message(Some(Reply::Packed(packed)))) => {
                    self.reported(packed)?;
                    continue;
                }
                Some(Incoming::Data(bytes)) if !matches!(self.report, Report::Came) => Content::Data(bytes),
                Some(Incoming::Zeros(count)) if !matches!(self.report, Report::Came) => Content::Hole(count),
                Some(_) => return Err(self.channel.broken("the guest sends something else than data")),
            };
            self.left = self.left.checked_sub(content.length()).ok_or_else(|| {
                self.channel.broken("the guest sends more data than was asked for or than any file holds")
            })?;
            if content.length() > 0 {
                return Ok(Some(content));
            }
        }
    }

    fn reported(&mut self, packed: messages::Packed) -> Result<(), GuestError> {
        let Report::Awaited(report) = std::mem::replace(&mut self.report, Report::Came) else {
            return Err(self.channel.broken("the guest ends an archive that is none, or twice"));
        };
        // Whoever takes the data may not ask for it.
        let _ = report.send(packed.left_out.map(left_out).unwrap_or_default());
        Ok(())
    }
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}
