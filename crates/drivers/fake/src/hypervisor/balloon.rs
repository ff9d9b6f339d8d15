//! Balloon of a fake machine.

use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::hypervisor::{Balloon, MachineError};
use tokio::sync::watch;

/// Driver for balloons in the kernel of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalloonDriver {
    /// It follows at once.
    Follows,
    /// There is none: the guest keeps all memory of its machine.
    Missing,
}

/// A balloon.
#[derive(Debug)]
pub(crate) struct FakeBalloon {
    driver: BalloonDriver,
    actual_mib: watch::Sender<u32>,
}

impl FakeBalloon {
    pub(crate) fn new(driver: BalloonDriver, memory_mib: u32) -> Self {
        Self { driver, actual_mib: watch::Sender::new(memory_mib) }
    }

    async fn is(&self, wanted: impl Fn(u32) -> bool, within: Duration) -> bool {
        let mut actual = self.actual_mib.subscribe();
        let waited = actual.wait_for(|actual| wanted(*actual));
        tokio::time::timeout(within, waited).await.is_ok_and(|reached| reached.is_ok())
    }
}

#[async_trait]
impl Balloon for FakeBalloon {
    async fn resize(&self, memory_mib: u32) -> Result<(), MachineError> {
        if self.driver == BalloonDriver::Follows {
            self.actual_mib.send_replace(memory_mib);
        }
        Ok(())
    }

    async fn reached(&self, memory_mib: u32, within: Duration) -> Result<bool, MachineError> {
        Ok(self.is(|actual| actual == memory_mib, within).await)
    }

    async fn followed(&self, from_mib: u32, within: Duration) -> Result<bool, MachineError> {
        Ok(self.is(|actual| actual != from_mib, within).await)
    }

    async fn actual_mib(&self) -> Result<u32, MachineError> {
        Ok(*self.actual_mib.borrow())
    }
}
