//! A frozen clock, with random numbers that are known.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::Clock;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A clock that only moves when told to. Its random bytes are a counter: different every time, the same in every run.
#[derive(Debug)]
pub struct FrozenClock {
    now_ms: AtomicI64,
    drawn: AtomicU64,
    /// Milliseconds by which it was moved forwards, all together.
    forwards_ms: AtomicU64,
    /// Told when the time was changed.
    moved: Notify,
}

impl FrozenClock {
    /// Stands at `now_ms` milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn at(now_ms: i64) -> Self {
        Self {
            now_ms: AtomicI64::new(now_ms),
            drawn: AtomicU64::new(0),
            forwards_ms: AtomicU64::new(0),
            moved: Notify::const_new(),
        }
    }

    /// Sets the time.
    pub fn set(&self, now_ms: i64) {
        let before = self.now_ms.swap(now_ms, Ordering::SeqCst);
        self.note_move(now_ms.saturating_sub(before));
        self.moved.notify_waiters();
    }

    /// Moves the time by `milliseconds`, backwards if negative.
    pub fn advance(&self, milliseconds: i64) {
        self.now_ms.fetch_add(milliseconds, Ordering::SeqCst);
        self.note_move(milliseconds);
        self.moved.notify_waiters();
    }

    fn note_move(&self, milliseconds: i64) {
        self.forwards_ms.fetch_add(u64::try_from(milliseconds).unwrap_or(0), Ordering::SeqCst);
    }
}

impl Default for FrozenClock {
    /// 2026-11-21T00:00:00Z.
    fn default() -> Self {
        Self::at(1_795_219_200_000)
    }
}

#[async_trait]
impl Clock for FrozenClock {
    fn now_ms(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    /// Real time, and all that it was moved forwards.
    fn steady(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.forwards_ms.load(Ordering::SeqCst))
    }

    /// Ends when the time was moved by `duration`, or when as much real time has passed: who waits for nothing else goes on.
    async fn sleep(&self, duration: Duration) {
        let end = self.now_ms().saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
        let moved = async {
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                // Listened to before it is looked at: a move in between is not missed.
                moved.as_mut().enable();
                if self.now_ms() >= end {
                    return;
                }
                moved.await;
            }
        };
        tokio::select! {
            () = moved => {}
            () = tokio::time::sleep(duration) => {}
        }
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let next = self.drawn.fetch_add(1, Ordering::SeqCst) + 1;
            chunk.copy_from_slice(&next.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_sleeps_goes_on_when_the_time_was_moved() {
        let clock = FrozenClock::at(0);
        let hour = Duration::from_secs(3_600);
        let (woken, ()) = tokio::join!(tokio::time::timeout(hour / 2, clock.sleep(hour)), async {
            tokio::task::yield_now().await;
            clock.advance(3_600_000);
        });
        assert!(woken.is_ok());
    }

    #[test]
    fn moves_only_when_told_and_never_repeats_itself() {
        let clock = FrozenClock::at(5);
        clock.advance(-2);
        assert_eq!(clock.now_ms(), 3);
        let (mut first, mut second) = ([0; 12], [0; 12]);
        clock.fill_random(&mut first);
        clock.fill_random(&mut second);
        assert_ne!(first, second);
    }
}
