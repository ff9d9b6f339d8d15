//! Detection of guests that stay silent.
//!
//! Time alone proves nothing: a server that was stopped (SIGSTOP, an overloaded host) for longer than the time limit has
//! not listened either. So only pings count that were sent in ticks that came in time; a late tick starts the count anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::GuestConfig;

/// Action that a tick asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing: the guest was heard since the last tick, or need not be.
    Rest,
    /// A ping.
    Ping,
    /// The guest has left enough pings unanswered.
    Lost,
}

/// Counts unanswered pings, one a tick.
#[derive(Debug)]
pub(crate) struct Silence {
    /// Time from one tick to the next.
    pub(crate) interval: Duration,
    /// Unanswered pings after which the guest is lost.
    limit: u32,
    unanswered: u32,
    last_tick: Option<Instant>,
}

impl Silence {
    pub(crate) fn new(config: &GuestConfig) -> Self {
        let interval = config.heartbeat_interval.min(config.heartbeat_timeout).max(Duration::from_millis(1));
        let pings = config.heartbeat_timeout.as_micros().div_ceil(interval.as_micros());
        Self {
            interval,
            limit: u32::try_from(pings).unwrap_or(u32::MAX).max(1),
            unanswered: 0,
            last_tick: None,
        }
    }

    /// `quiet`: nothing came since the last tick although something should have.
    pub(crate) fn tick(&mut self, now: Instant, quiet: bool) -> Beat {
        let in_time = self.last_tick.is_some_and(|last| now - last < self.interval * 2);
        self.last_tick = Some(now);
        if !quiet {
            self.unanswered = 0;
            return Beat::Rest;
        }
        if !in_time {
            // This process had no processor meanwhile: what the guest sent may still wait to be read.
            self.unanswered = 0;
        } else if self.unanswered >= self.limit {
            return Beat::Lost;
        }
        self.unanswered += 1;
        Beat::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks of 5 s, 30 s until a guest is lost.
    fn silence() -> Silence {
        Silence::new(&GuestConfig::default())
    }

    #[test]
    fn a_guest_that_answers_no_ping_is_lost_after_the_time_limit() {
        let (mut silence, start) = (silence(), Instant::now());
        let lost =
            (0..100).find(|tick| silence.tick(start + Duration::from_secs(5 * tick), true) == Beat::Lost);
        assert_eq!(lost, Some(6), "30 s after the first ping");
    }

    #[test]
    fn time_in_which_this_process_did_not_run_is_not_the_guests_silence() {
        let (mut silence, start) = (silence(), Instant::now());
        let mut now = start;
        for _ in 0..5 {
            assert_eq!(silence.tick(now, true), Beat::Ping);
            now += Duration::from_secs(5);
        }
        // SIGSTOP for 40 s.
        now += Duration::from_secs(40);
        for _ in 0..6 {
            assert_eq!(silence.tick(now, true), Beat::Ping, "the count begins anew");
            now += Duration::from_secs(5);
        }
        assert_eq!(silence.tick(now, true), Beat::Lost);
    }

    #[test]
    fn an_overloaded_process_whose_ticks_all_come_late_loses_nobody() {
        let (mut silence, start) = (silence(), Instant::now());
        for tick in 0..50 {
            assert_eq!(silence.tick(start + Duration::from_secs(11 * tick), true), Beat::Ping);
        }
    }

    #[test]
    fn whatever_comes_ends_the_silence() {
        let (mut silence, start) = (silence(), Instant::now());
        for tick in 0..50 {
            let answered = tick % 6 == 5;
            assert_ne!(silence.tick(start + Duration::from_secs(5 * tick), !answered), Beat::Lost);
        }
    }
}
