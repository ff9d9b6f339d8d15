//! TCP ports of a guest.

use async_trait::async_trait;
use bytes::Bytes;

use super::{ByteStream, GuestError};

/// A two-way byte stream to a port inside the guest.
pub struct PortConnection {
    /// Bytes from the guest.
    pub incoming: ByteStream,
    /// Bytes to the guest; dropping it ends that direction.
    pub outgoing: tokio::sync::mpsc::Sender<Bytes>,
}

/// Reaches what listens in a guest.
#[async_trait]
pub trait GuestPorts: Send + Sync {
    /// Connects to a TCP port on the guest's loopback.
    async fn connect_port(&self, port: u16) -> Result<PortConnection, GuestError>;
}
