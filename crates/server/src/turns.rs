//! Turns: executions of one context run one after the other.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use microvm_api::context::ContextId;
use microvm_core::{Boot, GuestLease};
use tokio::sync::OwnedMutexGuard;

/// The machine, by whatever channel its guest is reached, and the context.
type Key = (Boot, ContextId);

/// Turns of all contexts.
#[derive(Debug)]
pub(crate) struct Turns<K = Key>(Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl Turns {
    /// Waits for the turn of a context; it is over when the guard is dropped.
    pub(crate) async fn wait(&self, guest: &GuestLease, context: ContextId) -> OwnedMutexGuard<()> {
        self.of((guest.boot().clone(), context)).await
    }
}

impl<K: Eq + Hash> Turns<K> {
    async fn of(&self, key: K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Turns that nobody has or waits for. Here, because whoever drops one has no access to the map.
            all.retain(|_, turn| turn.strong_count() > 0);
            let turn = all.entry(key).or_default();
            turn.upgrade().unwrap_or_else(|| {
                let new = Arc::default();
                *turn = Arc::downgrade(&new);
                new
            })
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_context_waits_and_another_does_not() {
        let turns = Turns::default();
        let id = |text: &str| text.parse::<ContextId>().unwrap();
        let first = turns.of((1, id("a"))).await;
        let mut second = std::pin::pin!(turns.of((1, id("a"))));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(turns.of((1, id("b"))).await);
        drop(turns.of((2, id("a"))).await);
        drop(first);
        drop(second.await);
        drop(turns.of((1, id("c"))).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1, "turns that nobody waits for are kept");
    }
}
