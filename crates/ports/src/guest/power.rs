//! Power of a guest: switching off, and notice of what happens to its machine.

use std::time::Duration;

use async_trait::async_trait;
use microvm_types::guest::ShutdownMode;

use super::{GuestError, Identity};

/// Bytes that are on their way into the machine through its channel: zero means that there are none. The guest that gives
/// it has stopped sending for as long as it lives.
pub type InputProbe = Box<dyn Fn() -> u64 + Send + Sync>;

/// Tells a guest that its machine has a new identity, pauses, resumes or is to end.
#[async_trait]
pub trait GuestPower: Send + Sync {
    /// Gives a running guest another identity, that of `epoch`, and waits until the agent has confirmed every part.
    ///
    /// # Errors
    /// [`GuestError::Refused`] when a part was not confirmed, or `epoch` is not newer than the newest the guest has
    /// confirmed ([`ErrorKind::Conflict`](microvm_types::ErrorKind::Conflict)): the guest is then not to be used.
    async fn identify(&self, epoch: u64, identity: &Identity) -> Result<(), GuestError>;

    /// Sets the guest's wall clock to the host's. A guest's clocks stop with its machine, so it is told the time
    /// whenever it runs again in the same epoch; an identity has the time with it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](microvm_types::ErrorKind::Unsupported) from an agent that is older than this request.
    async fn tell_time(&self) -> Result<(), GuestError>;

    /// Stops expecting heartbeats (the machine is going to be paused), or expects them again.
    fn expect_heartbeats(&self, expected: bool);

    /// Stops sending until the answer is dropped, and tells how many bytes are still on their way to the machine: what
    /// arrives while a machine's state is taken would be in one half of it only.
    async fn hold_input(&self) -> InputProbe;

    /// Asks the guest to end: processes get SIGTERM, `grace` later SIGKILL; then sync and power off. Returns when the
    /// agent has begun; the machine's exit tells the end.
    async fn shutdown(&self, mode: ShutdownMode, grace: Duration) -> Result<(), GuestError>;
}
