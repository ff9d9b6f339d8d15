//! Content of files as extents (see [`microvm_types::extents`]), out and in.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use microvm_ports::GuestError;
use microvm_ports::content::{Content, ContentStream};
use microvm_ports::guest::ByteStream;
use microvm_types::extents::ExtentsReader;

/// Content as the body that tells it.
pub(crate) fn encoded(content: ContentStream) -> ByteStream {
    Box::pin(content.flat_map(|piece| {
        let (record, error) = match piece {
            Ok(piece) => (Some(piece.into_record()), None),
            Err(error) => (None, Some(Err(error))),
        };
        stream::iter(record.into_iter().flatten().map(Ok).chain(error))
    }))
}

/// The content that a body tells; ends with an error where the body is wrong, so that a guest keeps nothing of it.
pub(crate) fn decoded(body: ByteStream) -> ContentStream {
    let state = Some((body, Bytes::new(), ExtentsReader::default()));
    Box::pin(stream::unfold(state, |state| async move {
        let (mut body, mut part, mut reader) = state?;
        loop {
            match reader.next(&mut part) {
                Ok(Some(piece)) => return Some((Ok(piece), Some((body, part, reader)))),
                Ok(None) => {}
                Err(error) => return Some((Err(GuestError::Source(error.to_string())), None)),
            }
            part = match body.next().await {
                Some(Ok(next)) => next,
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let error = reader.finish().err()?;
                    return Some((Err::<Content, _>(GuestError::Source(error.to_string())), None));
                }
            };
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn gather<T>(
        mut data: impl StreamExt<Item = Result<T, GuestError>> + Unpin,
    ) -> Result<Vec<T>, GuestError> {
        let mut all = Vec::new();
        while let Some(piece) = data.next().await {
            all.push(piece?);
        }
        Ok(all)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_body_tells_its_content_and_a_wrong_one_ends_with_an_error() {
        let content =
            || vec![Content::Hole(1 << 40), Content::Data(Bytes::from_static(b"data")), Content::Hole(7)];
        let body = encoded(Box::pin(stream::iter(content().into_iter().map(Ok))));
        let body: Vec<u8> = gather(body).await.unwrap().concat();
        assert_eq!(body.len(), 3 * 8 + 4);
        let parts = |body: Vec<u8>| {
            let parts: Vec<_> = body.chunks(5).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
            decoded(Box::pin(stream::iter(parts)))
        };
        let found = gather(parts(body.clone())).await.unwrap();
        assert_eq!(found.iter().map(Content::length).sum::<u64>(), (1 << 40) + 4 + 7);
        assert_eq!((&found[0], found.last()), (&Content::Hole(1 << 40), Some(&Content::Hole(7))));
        for wrong in [body[..body.len() - 1].to_vec(), [body.clone(), vec![0; 8]].concat()] {
            assert!(matches!(gather(parts(wrong)).await, Err(GuestError::Source(_))));
        }
        let broken = encoded(Box::pin(stream::iter([Err(GuestError::Source("gone".to_owned()))])));
        assert!(gather(broken).await.is_err());
    }
}
