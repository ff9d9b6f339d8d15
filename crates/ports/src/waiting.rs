//! Time limits of waits for somebody else's answer.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, error::Elapsed, timeout};

/// Parts that a limit is divided into.
const PARTS: u32 = 8;
/// A part that took so many times its length was not spent waiting: this process stood still in it.
const STANDSTILL: u32 = 2;

/// Waits for `answer` at most `limit`, of which the time in which this process stood still is no part.
///
/// A process that was stopped (by a debugger, a frozen control group, a suspended machine) finds its timers run out when it goes
/// on, while answers that came in time wait unread in their sockets. A limit for somebody else's answer must not blame them
/// for that.
///
/// # Errors
/// If the time was up first. The wait then took at least `limit`.
pub async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Result<T, Elapsed> {
    let part = limit / PARTS;
    let mut answer = pin!(answer);
    let mut waited = 0;
    loop {
        let began = Instant::now();
        let late = match timeout(part, answer.as_mut()).await {
            Ok(answer) => return Ok(answer),
            Err(late) => late,
        };
        // Timers tick by milliseconds: of a shorter part nothing can be told.
        let stood_still = part > Duration::from_millis(10) && began.elapsed() > part * STANDSTILL;
        waited += u32::from(!stood_still);
        if waited >= PARTS {
            return Err(late);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept() {
        let began = Instant::now();
        within(Duration::from_secs(8), pending::<()>()).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 8);
        assert_eq!(within(Duration::ZERO, async { 1 }).await.unwrap(), 1);
        within(Duration::ZERO, pending::<()>()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_standstill_of_this_process_does_not_count() {
        let (sender, answer) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(within(Duration::from_secs(8), answer));
        tokio::time::sleep(Duration::from_millis(7_500)).await;
        // Long after the limit, and this process sees it only now.
        tokio::time::advance(Duration::from_secs(600)).await;
        tokio::task::yield_now().await;
        sender.send("here").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().unwrap(), "here");
    }
}
