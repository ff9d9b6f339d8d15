//! Content of files on its way to and from a guest.

use std::pin::Pin;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
pub use microvm_types::extents::Content;

use super::{ByteStream, GuestError};

/// Content of a file in order, holes told by their length. The producer is held up when the consumer does not take it.
pub type ContentStream = Pin<Box<dyn Stream<Item = Result<Content, GuestError>> + Send>>;

/// Holes are expanded in portions of this size, in bytes.
const PORTION: usize = 64 * 1024;
static ZEROS: [u8; PORTION] = [0; PORTION];

/// Content of which nobody said where its holes are.
#[must_use]
pub fn of_bytes(bytes: ByteStream) -> ContentStream {
    Box::pin(bytes.map(|part| part.map(Content::Data)))
}

/// Content as plain bytes; the zeros of a hole are made only as fast as they are taken.
#[must_use]
pub fn expanded(content: ContentStream) -> ByteStream {
    Box::pin(content.flat_map(|piece| {
        let (first, zeros) = match piece {
            Ok(Content::Data(data)) => (Some(Ok(data)), 0),
            Ok(Content::Hole(count)) => (None, count),
            Err(error) => (Some(Err(error)), 0),
        };
        stream::iter(first.into_iter().chain(zeros_of(zeros).map(Ok)))
    }))
}

fn zeros_of(count: u64) -> impl Iterator<Item = Bytes> {
    let mut left = count;
    std::iter::from_fn(move || {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(PORTION);
        left -= now as u64;
        (now > 0).then(|| Bytes::from_static(&ZEROS[..now]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn holes_become_zeros_and_errors_stay() {
        let pieces = [
            Ok(Content::Data(Bytes::from_static(b"ab"))),
            Ok(Content::Hole(PORTION as u64 + 3)),
            Ok(Content::Hole(0)),
            Err(GuestError::Source("gone".to_owned())),
        ];
        let mut bytes = expanded(Box::pin(stream::iter(pieces)));
        let mut lengths = Vec::new();
        let mut failed = false;
        while let Some(part) = bytes.next().await {
            match part {
                Ok(part) => {
                    assert!(part == b"ab".as_slice() || part.iter().all(|byte| *byte == 0));
                    lengths.push(part.len());
                }
                Err(_) => failed = true,
            }
        }
        assert_eq!((lengths.as_slice(), failed), ([2, PORTION, 3].as_slice(), true));
    }

    #[tokio::test]
    async fn an_endless_hole_is_expanded_as_it_is_taken() {
        let mut bytes = expanded(Box::pin(stream::iter([Ok(Content::Hole(u64::MAX))])));
        for _ in 0..3 {
            assert_eq!(bytes.next().await.unwrap().unwrap().len(), PORTION);
        }
    }
}
