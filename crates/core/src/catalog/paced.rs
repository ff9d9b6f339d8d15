//! Streams of guests that must keep a pace.

use futures::{StreamExt, stream};
use microvm_ports::guest::ByteStream;
use microvm_ports::{GuestError, Pace};
use tokio::time::{Instant, timeout};

/// A stream that ends with an error when its guest is slower than [`Pace`] allows. Time in which nobody reads does not count.
pub(super) fn paced(data: ByteStream) -> ByteStream {
    let state = Some((data, Pace::default()));
    Box::pin(stream::unfold(state, |state| async move {
        let (mut data, mut pace) = state?;
        let (began, left) = (Instant::now(), pace.left());
        match timeout(left, data.next()).await {
            Ok(Some(Ok(part))) => {
                pace.note(began.elapsed(), part.len() as u64);
                Some((Ok(part), Some((data, pace))))
            }
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => None,
            Err(_) => {
                let error =
                    GuestError::Timeout { action: "send its files at 128 KiB in a second", after: left };
                Some((Err(error), None))
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A guest that sends a byte every `seconds`.
    fn trickling(seconds: u64) -> ByteStream {
        Box::pin(stream::repeat(()).take(1_000).then(move |()| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(b"x".as_slice().into())
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_trickles_is_given_up_and_one_that_waits_for_us_is_not() {
        let began = Instant::now();
        for seconds in [119, 200] {
            let parts: Vec<_> = paced(trickling(seconds)).collect().await;
            let (last, before) = parts.split_last().unwrap();
            assert!(matches!(last, Err(GuestError::Timeout { .. })), "{last:?}");
            assert!(before.iter().all(Result::is_ok) && before.len() < 2, "{before:?}");
        }
        assert!(began.elapsed() < Duration::from_mins(5), "{:?}", began.elapsed());
        // Whoever reads it is slow himself.
        let mut data = paced(trickling(0));
        while let Some(part) = data.next().await {
            part.unwrap();
            tokio::time::sleep(Duration::from_secs(500)).await;
        }
    }
}
