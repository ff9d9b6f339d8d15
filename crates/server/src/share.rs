//! One budget for many callers, of which none can take what others need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::caller::Peer;

/// A budget. A peer may hold as much as is free: alone half of it, two a third each; so somebody new always gets some.
#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: u64,
    by_peer: HashMap<Peer, u64>,
}

impl Budget {
    pub(crate) fn of(total: u64) -> Arc<Self> {
        Arc::new(Self { total, held: Mutex::default() })
    }

    /// A share of `amount` for `peer`; `None` if that is more than it may hold now.
    pub(crate) fn take(self: &Arc<Self>, peer: Peer, amount: u64) -> Option<Share> {
        let mut share = Share { budget: Arc::clone(self), peer, amount: 0 };
        share.grow(amount).then_some(share)
    }

    /// Bytes held by all peers together.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.held().all
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Sums of numbers: a thread that panicked left them whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Part of a budget held by one request or connection; returned when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    peer: Peer,
    amount: u64,
}

impl Share {
    /// Adds `more`; whether there was enough. If not, nothing changes.
    pub(crate) fn grow(&mut self, more: u64) -> bool {
        let mut held = self.budget.held();
        let Some(free) = self.budget.total.checked_sub(held.all).and_then(|free| free.checked_sub(more))
        else {
            return false;
        };
        let own = held.by_peer.get(&self.peer).copied().unwrap_or(0) + more;
        // At most as much as is left for all others, now that this is taken.
        if more > 0 && own > free {
            return false;
        }
        held.all += more;
        // A peer that holds nothing gets no entry: nobody would take it out again.
        if own > 0 {
            held.by_peer.insert(self.peer, own);
        }
        self.amount += more;
        true
    }

    pub(crate) const fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.budget.held();
        held.all -= self.amount;
        if let Some(own) = held.by_peer.get_mut(&self.peer) {
            *own -= self.amount;
            if *own == 0 {
                held.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::PeerProcess;

    fn peer(pid: i32) -> Peer {
        Peer(Some(PeerProcess { uid: 0, pid: Some(pid) }))
    }

    #[test]
    fn nobody_takes_what_others_need() {
        let budget = Budget::of(100);
        let mut greedy: Vec<Share> = std::iter::from_fn(|| budget.take(peer(1), 1)).collect();
        assert_eq!(greedy.len(), 50, "alone half of it");
        let second: Vec<Share> = std::iter::from_fn(|| budget.take(peer(2), 1)).collect();
        assert_eq!(second.len(), 25);
        assert!(budget.take(peer(1), 1).is_none());
        assert!(budget.take(peer(3), 1).is_some(), "somebody new gets some");
        assert!(!greedy[0].grow(1));
        drop(second);
        greedy.clear();
        assert_eq!(budget.taken(), 0);
        assert!(budget.held().by_peer.is_empty(), "peers that hold nothing are forgotten");
        assert!(budget.take(peer(1), 51).is_none());
        assert_eq!(budget.taken(), 0, "what was refused is not held");
    }
}
