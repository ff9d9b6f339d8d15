//! Ends blocking work whose future was dropped.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use camino::Utf8Path;
use microvm_ports::StorageError;
use rustix::process::{Pid, Signal, kill_process_group};

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    groups: Mutex<BTreeSet<i32>>,
}

/// Shared between a future and the blocking work it waits for.
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

impl Cancel {
    /// Ends the work: it stops at its next look, and the tools it runs are killed now.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        for group in self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            kill_group(*group);
        }
    }

    /// True if nobody waits for the result any more.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// An error once cancelled. Nobody sees it: the future that would is gone.
    pub fn check(&self) -> Result<(), StorageError> {
        if self.is_cancelled() {
            let cause = io::Error::new(io::ErrorKind::Interrupted, "the request was given up");
            return Err(StorageError::Io {
                action: "working on",
                path: Utf8Path::new("the request").to_owned(),
                cause,
            });
        }
        Ok(())
    }

    /// Registers a process group that must not outlive the request. It is taken out again when the guard drops, which
    /// must happen before its leader is reaped, so that a number used again is never hit.
    pub fn watch_group(&self, group: u32) -> GroupGuard {
        let group = i32::try_from(group).unwrap_or(i32::MAX);
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
        if self.is_cancelled() {
            kill_group(group);
        }
        GroupGuard { cancel: self.clone(), group }
    }

    /// A reader that fails once cancelled.
    pub fn reader<R: Read>(&self, inner: R) -> CancelReader<R> {
        CancelReader { inner, cancel: self.clone() }
    }
}

/// Runs blocking work on a thread of its own. If the future is dropped the work is told to stop and cleans up after
/// itself. `root`: where it works, for the error when the program ends.
///
/// # Errors
/// Those of `work`; [`StorageError::Io`] when the runtime is shutting down.
pub async fn blocking<T: Send + 'static>(
    root: &Utf8Path,
    work: impl FnOnce(Cancel) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let cancel = Cancel::default();
    let _guard = CancelOnDrop(cancel.clone());
    match tokio::task::spawn_blocking(move || work(cancel)).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StorageError::Io {
                action: "working in",
                path: root.to_owned(),
                cause: io::Error::other("the program is shutting down"),
            }),
        },
    }
}

fn kill_group(group: i32) {
    if let Some(pid) = Pid::from_raw(group) {
        // It may have ended by itself: then there is nothing to do.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// See [`Cancel::watch_group`].
pub struct GroupGuard {
    cancel: Cancel,
    group: i32,
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        self.cancel.0.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.group);
    }
}

/// Cancels when dropped; the future holds it while the work goes on.
pub struct CancelOnDrop(pub Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// See [`Cancel::reader`].
pub struct CancelReader<R> {
    inner: R,
    cancel: Cancel,
}

impl<R: Read> Read for CancelReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            // Not `Interrupted`: readers would try again for ever.
            return Err(io::Error::other("the request was given up"));
        }
        self.inner.read(buffer)
    }
}
