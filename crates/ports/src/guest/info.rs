//! The guest as a system.

use async_trait::async_trait;
use microvm_types::guest::{GuestHealth, GuestProcess, SystemInfo};

use super::GuestError;

/// Tells how a guest is doing.
#[async_trait]
pub trait GuestInfo: Send + Sync {
    /// The guest as a system.
    async fn system_info(&self) -> Result<SystemInfo, GuestError>;

    /// All processes of the guest.
    async fn guest_processes(&self) -> Result<Vec<GuestProcess>, GuestError>;

    /// Health of the guest.
    async fn health(&self) -> Result<GuestHealth, GuestError>;
}
