//! What is undone unless it is kept: the one guard of this crate.

use scopeguard::ScopeGuard;

/// A value whose undoing runs when it is dropped, unless it was [kept](keep).
pub(crate) type Undo<T> = ScopeGuard<T, fn(T)>;

/// Has `undo` run when the value is dropped.
pub(crate) fn unless_kept<T>(value: T, undo: fn(T)) -> Undo<T> {
    scopeguard::guard(value, undo)
}

/// Nothing is undone any more.
pub(crate) fn keep<T>(guard: Undo<T>) -> T {
    ScopeGuard::into_inner(guard)
}
