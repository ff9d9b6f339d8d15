//! The channel to a guest: what core and the edges need from the guest agent.
//!
//! The guest is hostile after its first byte. A driver of this port bounds sizes, streams, rates and memory, and turns
//! anything it does not understand into [`GuestError::Protocol`], never into a panic or a wait without end.
//!
//! [`Guest`] is the whole of one guest; its parts are traits of their own, so that whoever needs one part can ask for no
//! more than that.

pub mod archive;
pub mod content;
mod error;
mod exec;
mod files;
mod identity;
mod info;
mod measure;
mod port;
mod power;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use camino::Utf8PathBuf;
use futures::Stream;
use microvm_types::guest::AgentInfo;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::archive::GuestArchives;
pub use self::error::{CloseReason, GuestError};
pub use self::exec::{GuestExec, ProcessEvent, ProcessEvents, ProcessHandle, ProcessInput, ProcessWriter};
pub use self::files::{Changes, GuestFiles};
pub use self::identity::{GuestShare, GuestVolume, Identity};
pub use self::info::GuestInfo;
pub use self::measure::GuestMeasure;
pub use self::port::{GuestPorts, PortConnection};
pub use self::power::{GuestPower, InputProbe};

/// A guest path: bytes, absolute unless said otherwise; no NUL.
pub type GuestPath = [u8];

/// Bulk data in order. The producer is held up when the consumer does not take it.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, GuestError>> + Send>>;

/// Address of the channel of a machine on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestEndpoint {
    /// A unix socket that carries the byte stream as it is (virtio-serial).
    UnixSocket(Utf8PathBuf),
    /// A unix socket that first wants `CONNECT <port>` (hybrid vsock of Firecracker and Cloud Hypervisor).
    HybridVsock {
        /// Path of the socket.
        path: Utf8PathBuf,
        /// Port the agent listens on.
        port: u32,
    },
}

/// Opens channels.
#[async_trait]
pub trait GuestConnector: Send + Sync {
    /// Connects, shakes hands with `epoch`, pushes `identity` and waits until the agent has confirmed every part.
    /// A machine that is still booting is waited for.
    ///
    /// # Errors
    /// [`GuestError::Timeout`] when `deadline` passes; [`GuestError::Refused`] when a part was not confirmed, of kind
    /// [`ErrorKind::Conflict`](microvm_types::ErrorKind::Conflict) when `epoch` is not newer than the newest the guest has confirmed.
    async fn connect(
        &self,
        endpoint: &GuestEndpoint,
        epoch: u64,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError>;
}

/// One guest over one channel in one epoch. All methods, those of its parts too, may be called at the same time and do not
/// wait for each other.
#[async_trait]
pub trait Guest: GuestExec + GuestFiles + GuestArchives + GuestPorts + GuestInfo + GuestPower {
    /// Description of the agent by itself.
    fn agent(&self) -> &AgentInfo;

    /// Becomes `Some` when the channel ends, with the reason.
    fn closed(&self) -> watch::Receiver<Option<CloseReason>>;

    /// Ends the channel from this side.
    fn close(&self);

    /// One empty round trip; returns how long it took.
    async fn ping(&self) -> Result<Duration, GuestError>;

    /// Measures the guest; `None` where the driver cannot.
    fn measuring(&self) -> Option<&dyn GuestMeasure> {
        None
    }
}
