//! Locks by name, for work that must not be done twice at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// One lock for each name in use. Only for blocking work: whoever waits keeps a thread.
#[derive(Default)]
pub(crate) struct KeyedLocks(Mutex<HashMap<String, Weak<Mutex<()>>>>);

/// The lock of one name.
pub(crate) struct KeyedLock(Arc<Mutex<()>>);

impl KeyedLocks {
    /// The lock of a name.
    pub(crate) fn of(&self, name: &str) -> KeyedLock {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return KeyedLock(lock);
        }
        // Locks that nobody has are dropped when a new one is made, so that names of the past take no memory.
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        KeyedLock(lock)
    }
}

impl KeyedLock {
    /// Waits for the lock. It guards files, whose state is right after a panic too.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_one_lock() {
        let locks = KeyedLocks::default();
        let first = locks.of("a");
        let held = first.hold();
        assert!(locks.of("a").0.try_lock().is_err());
        assert!(locks.of("b").0.try_lock().is_ok());
        drop(held);
        assert!(locks.of("a").0.try_lock().is_ok());
    }
}
