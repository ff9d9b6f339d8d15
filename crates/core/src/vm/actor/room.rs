//! A VM that stands still because the host's disk is full or nearly so, and goes on by itself when there is room.

use std::time::Duration;

use microvm_types::Phase;
use microvm_types::vm::Rest;

use super::VmActor;
use crate::vm::room;

/// How often is looked for room: nothing tells when a file system gets some.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl VmActor {
    /// Whether it waits for room.
    pub(super) fn waits_for_room(&self) -> bool {
        self.record.phase() == Phase::Paused && self.record.life.rest() == Some(&Rest::DiskFull)
    }

    /// Ends when it is time to look for room.
    pub(super) fn look_due(&self) -> impl Future<Output = ()> + Send + use<> {
        tokio::time::sleep(LOOK_EVERY)
    }

    /// Its VMM has stopped it: one of its writes found no space.
    pub(super) async fn disk_is_full(&mut self) {
        if let Some(guest) = &self.guest {
            guest.expect_heartbeats(false);
        }
        tracing::warn!(vm = %self.record.id, "the host's disk is full: the VM stands still until there is room");
        self.not_unreachable();
        // Noted, not requested: that it cannot be stored on the same disk does not make it run.
        let reason = Some("the disk of the host is full".to_owned());
        self.note_by(|life| life.pause_because(Rest::DiskFull), reason).await;
    }

    /// Stops a VM that grows before it takes the last room from all others.
    pub(super) async fn make_room(&mut self) {
        if self.record.phase() != Phase::Running {
            return;
        }
        let Some(machine) = self.machine.clone() else { return };
        match machine.pause().await {
            Ok(()) => self.disk_is_full().await,
            Err(error) => {
                tracing::warn!(vm = %self.record.id, %error, "a VM that grows could not be stopped, and the disk is nearly full");
                let _ = machine.resume().await;
            }
        }
    }

    /// Lets it go on if there is room.
    pub(super) async fn look_for_room(&mut self) {
        match room::is_short(&self.shared).await {
            Ok(true) => {}
            Ok(false) => match self.resume().await {
                Ok(()) => tracing::info!(vm = %self.record.id, "there is room again: the VM goes on"),
                Err(error) => {
                    tracing::warn!(vm = %self.record.id, %error, "it could not go on although there is room");
                }
            },
            Err(error) => tracing::warn!(%error, "the free space cannot be told"),
        }
    }
}
