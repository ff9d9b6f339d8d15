//! Credit arithmetic of one direction of one stream.

/// Credit each direction of a stream begins with, in bytes of frames. Far more than the channel holds in one round trip
/// (210 MB/s × 0.3 ms = 63 KB), small enough for hundreds of streams.
pub const INITIAL_WINDOW: u32 = 512 * 1024;

/// Window of a stream whose receiver has widened it for bulk data, and the most credit a sender accepts: while a disk
/// works on one half, the other half comes. Only agents widen: what a guest makes the host keep stays at
/// [`INITIAL_WINDOW`].
pub const WIDE_WINDOW: u32 = 2 * 1024 * 1024;

/// The sender's side: how much may still be sent.
#[derive(Debug)]
pub struct SendWindow {
    credit: u64,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { credit: u64::from(INITIAL_WINDOW) }
    }
}

impl SendWindow {
    /// Takes `cost` if there is that much.
    #[must_use]
    pub fn take(&mut self, cost: usize) -> bool {
        let cost = cost as u64;
        if cost > self.credit {
            return false;
        }
        self.credit -= cost;
        true
    }

    /// The rest.
    #[must_use]
    pub const fn credit(&self) -> u64 {
        self.credit
    }

    /// Adds what the peer granted; `false` if it grants more than a window can ever hold, which is a violation.
    #[must_use]
    pub fn grant(&mut self, bytes: u32) -> bool {
        self.credit += u64::from(bytes);
        self.credit <= u64::from(WIDE_WINDOW)
    }
}

/// The receiver's side: how much the peer may still send, and what it is to be given back.
#[derive(Debug)]
pub struct ReceiveWindow {
    size: u32,
    allowed: u64,
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { size: INITIAL_WINDOW, allowed: u64::from(INITIAL_WINDOW), consumed: 0 }
    }
}

impl ReceiveWindow {
    /// Notes a frame that came; `false` if the peer had no credit for it, which is a violation.
    #[must_use]
    pub fn receive(&mut self, cost: usize) -> bool {
        match self.allowed.checked_sub(cost as u64) {
            Some(left) => {
                self.allowed = left;
                true
            }
            None => false,
        }
    }

    /// Notes that the consumer took a frame; `true` if what it gave back is now worth a frame.
    #[must_use]
    pub fn consume(&mut self, cost: usize) -> bool {
        self.consumed = self.consumed.saturating_add(u32::try_from(cost).unwrap_or(u32::MAX));
        self.consumed >= self.size / 4
    }

    /// Widens the window to [`WIDE_WINDOW`]: so much more is there to give. `false` if it is that wide already.
    #[must_use]
    pub fn widen(&mut self) -> bool {
        let more = WIDE_WINDOW - self.size;
        self.size = WIDE_WINDOW;
        self.consumed = self.consumed.saturating_add(more);
        more > 0
    }

    /// [`Self::widen`] was called.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        self.size == WIDE_WINDOW
    }

    /// Takes all credit there is to give back, to be called when it really leaves: the peer may use it from then on.
    #[must_use]
    pub fn grant(&mut self) -> u32 {
        let grant = std::mem::take(&mut self.consumed);
        self.allowed += u64::from(grant);
        grant
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sender_that_keeps_to_its_credit_never_violates(
            costs in proptest::collection::vec(16usize..70_000, 1..400),
            wide_from in 0usize..400,
        ) {
            let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
            let mut queue = std::collections::VecDeque::new();
            for (number, cost) in costs.into_iter().enumerate() {
                if number == wide_from {
                    prop_assert!(receive.widen());
                    prop_assert!(send.grant(receive.grant()));
                }
                while !send.take(cost) {
                    // Stuck only while something is left to consume: otherwise the stream would hang for ever.
                    let oldest: usize = queue.pop_front().expect("no deadlock");
                    if receive.consume(oldest) {
                        prop_assert!(send.grant(receive.grant()));
                    }
                }
                prop_assert!(receive.receive(cost));
                queue.push_back(cost);
            }
        }
    }

    #[test]
    fn too_much_is_a_violation() {
        let mut receive = ReceiveWindow::default();
        assert!(receive.receive(INITIAL_WINDOW as usize));
        assert!(!receive.receive(1));
        assert!(!SendWindow::default().grant(WIDE_WINDOW - INITIAL_WINDOW + 1));
    }

    #[test]
    fn a_window_is_widened_once() {
        let mut receive = ReceiveWindow::default();
        assert!(receive.widen());
        assert!(!receive.widen());
        assert_eq!(receive.grant(), WIDE_WINDOW - INITIAL_WINDOW);
        assert!(receive.receive(WIDE_WINDOW as usize));
        assert!(!receive.receive(1));
    }
}
