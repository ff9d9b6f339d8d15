//! The one guard of this crate: a value that is undone when dropped, unless it is kept.

use scopeguard::ScopeGuard;

/// A value whose undoing runs when it is dropped, unless it was [kept](keep).
pub(crate) type Undo<T> = ScopeGuard<T, fn(T)>;

/// Has `undo` run when the value is dropped.
pub(crate) fn unless_kept<T>(value: T, undo: fn(T)) -> Undo<T> {
    scopeguard::guard(value, undo)
}

/// Keeps the value: nothing is undone any more.
pub(crate) fn keep<T>(guard: Undo<T>) -> T {
    ScopeGuard::into_inner(guard)
}
