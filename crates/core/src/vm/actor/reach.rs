//! A VM whose agent does not answer: its machine is left alone, and the agent is tried until it answers.
//!
//! A silent agent proves nothing about the guest's work: the host may be overloaded, the agent may be stopped, a hostile
//! guest may speak nonsense. Only a machine that has ended, or its owner, ends a VM.

use std::time::Duration;

use super::VmActor;
use crate::error::ServiceError;
use crate::launch;
use crate::vm::view::Unreachable;
use microvm_types::Phase;

impl Unreachable {
    /// What whoever needs the agent is told.
    pub(crate) fn error(self, vm: &microvm_types::Name, now_ms: i64) -> ServiceError {
        let seconds = now_ms.saturating_sub(self.since_ms).max(0) / 1_000;
        ServiceError::Unreachable { vm: vm.clone(), seconds, reason: self.reason }
    }
}

impl VmActor {
    /// Notes that the agent does not answer, and plans the next try.
    pub(super) fn unreachable(&mut self, reason: String) {
        tracing::warn!(vm = %self.record.id, reason, "the agent does not answer, its machine goes on");
        if let Some(guest) = self.guest.take() {
            guest.close();
        }
        self.reaching.lost();
        let since_ms = self.shared.ports.clock.now_ms();
        let told = format!("unreachable: {reason}");
        self.unreachable = Some(Unreachable { since_ms, reason, tried: false });
        self.publish_now();
        self.tell(Some(told));
    }

    /// Notes that nothing is missing any more, or that there is nothing to be missed.
    pub(super) fn not_unreachable(&mut self) {
        self.unreachable = None;
        self.reaching.cancel();
    }

    /// Tries to reach the agent, and the machine where that is not taken up yet. A command goes before it.
    pub(super) async fn reach_again(&mut self) {
        let due = matches!(self.record.phase(), Phase::Running)
            || (matches!(self.record.phase(), Phase::Paused | Phase::Pooled) && self.machine.is_none());
        if !due {
            return self.not_unreachable();
        }
        let outcome = match self.machine.clone() {
            None => self.take_up().await,
            Some(machine) => {
                let (commands, ending) = (&mut self.commands, self.shared.ending.clone());
                let connect = async {
                    // Whatever paused it (a server that died in the middle of something): it is to run. One that runs
                    // goes on.
                    machine.resume().await.map_err(|error| error.to_string())?;
                    super::adopt::connect_in_some_epoch(&self.shared, &self.record, &machine)
                        .await
                        .map_err(|error| error.to_string())
                };
                tokio::select! {
                    biased;
                    () = ending.cancelled() => return,
                    exit = launch::exited(machine.state()) => return self.machine_exited(exit).await,
                    Some(order) = commands.recv() => {
                        self.pending.push_back(order);
                        return;
                    }
                    connected = connect => connected.map(|(guest, epoch)| self.connected(guest, epoch)),
                }
            }
        };
        match outcome {
            Ok(()) => {
                tracing::info!(vm = %self.record.id, "the agent answers again");
                // Nobody could use it meanwhile.
                self.activity.touch(self.shared.ports.clock.now_ms());
                self.save_or_log(Some("its agent answers again".to_owned())).await;
            }
            Err(reason) => {
                // It may have ended in the try.
                let Some(unreachable) = &mut self.unreachable else { return };
                let first = !std::mem::replace(&mut unreachable.tried, true);
                self.reaching.plan();
                if first {
                    tracing::warn!(vm = %self.record.id, reason, "the agent could not be reached again, it is tried on");
                    self.publish_now();
                }
            }
        }
    }

    /// The channel is open.
    pub(super) fn reached(&mut self) {
        self.not_unreachable();
        self.reaching.holds();
    }

    /// Before a stop: an agent that answers after all can sync its disks.
    pub(super) async fn reach_for_stop(&mut self, grace: Duration) {
        if let (None, Some(machine)) = (&self.guest, self.machine.clone()) {
            let outcome = tokio::time::timeout(grace, self.connect_again(&machine)).await;
            tracing::info!(vm = %self.record.id, reached = matches!(outcome, Ok(Ok(()))), "tried the agent once more before the stop");
        }
    }
}
