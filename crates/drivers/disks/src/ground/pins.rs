//! Files that are in use although no manifest names them yet, or any more.
//!
//! Things are removed in this order: list them, begin to watch the pins, read all manifests, remove what neither a manifest
//! names nor a pin has held since the watch began. A thing gets a new user only through a pin that is taken while an older
//! user still names it, so nothing in use is removed, and no work waits for the collector.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    held: HashMap<String, usize>,
    /// Names that were pinned at any time since a watch began.
    since: Option<HashSet<String>>,
}

/// Names that are pinned; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Pins(Arc<Mutex<State>>);

/// Holds one name until dropped.
pub(crate) struct Pin {
    pins: Pins,
    name: String,
}

/// A watch under way; there is one at a time.
pub(crate) struct Watch<'a>(&'a Pins);

impl Pins {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a name, whether its file exists or not.
    pub(crate) fn pin(&self, name: String) -> Pin {
        let mut state = self.state();
        *state.held.entry(name.clone()).or_default() += 1;
        if let Some(since) = &mut state.since {
            since.insert(name.clone());
        }
        Pin { pins: self.clone(), name }
    }

    /// Begins to watch.
    pub(crate) fn watch(&self) -> Watch<'_> {
        let mut state = self.state();
        state.since = Some(state.held.keys().cloned().collect());
        Watch(self)
    }
}

impl Watch<'_> {
    /// Does something, which must be short, unless a name was held since the watch began.
    pub(crate) fn unless_used<T>(&self, name: &str, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.0.state();
        let used = state.since.as_ref().is_none_or(|since| since.contains(name));
        (!used).then(work)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.state().since = None;
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.pins.state();
        if let Some(count) = state.held.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_when_its_last_pin_went_before_the_watch() {
        let pins = Pins::default();
        let first = pins.pin("a".into());
        let second = pins.pin("a".into());
        drop(first);
        {
            let watch = pins.watch();
            drop(pins.pin("b".into()));
            drop(second);
            for name in ["a", "b"] {
                assert!(watch.unless_used(name, || ()).is_none(), "{name} was used meanwhile");
            }
            assert!(watch.unless_used("c", || ()).is_some());
        }
        let watch = pins.watch();
        assert!(watch.unless_used("a", || ()).is_some() && watch.unless_used("b", || ()).is_some());
    }
}
