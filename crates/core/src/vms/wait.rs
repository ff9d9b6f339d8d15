//! Waiting for a phase.

use microvm_types::vm::VmRecord;
use microvm_types::{OperationName, Phase, VmRef};
use tokio::sync::broadcast::error::RecvError;

use super::Vms;
use crate::error::ServiceError;
use crate::events::{Cause, Event, What};

/// Phases that are waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Any of these.
    pub phases: Vec<Phase>,
    /// Its deletion too.
    pub gone: bool,
}

impl Wanted {
    /// True if a VM in this phase need not be waited for any more.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`] if it was deleted and that is not wanted.
    fn is_met(&self, name: &str, phase: Phase) -> Result<bool, ServiceError> {
        match phase {
            Phase::Deleted if self.gone => Ok(true),
            Phase::Deleted => Err(ServiceError::UnknownVm(name.to_owned())),
            phase => Ok(self.phases.contains(&phase)),
        }
    }
}

impl Vms {
    /// Waits until a VM is in one of the phases; the event that said so, or one that describes the VM if it is already.
    /// No phase in between is missed, however short it is, unless more happens on the host than events are kept for.
    /// Cancelling is safe.
    ///
    /// # Errors
    /// [`ServiceError::UnknownVm`] if it is deleted meanwhile and that is not wanted; [`ServiceError::FailedMeanwhile`] if
    /// it fails while something else is waited for.
    pub async fn wait(&self, vm: &VmRef, wanted: &Wanted) -> Result<Event, ServiceError> {
        self.context.authorise(OperationName::VM_WAIT)?;
        let handle = self.context.owned(vm)?;
        // Subscribed before it is looked at: what happens in between is seen.
        let mut events = self.context.shared.events.watch(&self.context.caller.tenant);
        let record = handle.record();
        let name = record.name.as_str();
        if wanted.is_met(name, record.phase())? {
            return Ok(as_event(record, handle.cause));
        }
        // A VM that had failed before the wait may be started by somebody else: only a new failure ends it.
        let failed = record.phase() == Phase::Failed;
        loop {
            match events.next().await {
                Ok(event) if event.vm == record.id => {
                    let What::Phase { from, to, reason, .. } = &event.what else { continue };
                    if wanted.is_met(name, *to)? {
                        return Ok(event);
                    }
                    // A change of its name or labels is told with the phase that it is in already.
                    if *to == Phase::Failed && from != to {
                        let reason = reason.clone().unwrap_or_default();
                        return Err(ServiceError::FailedMeanwhile { vm: event.name, reason });
                    }
                }
                Ok(_) => {}
                // More happened than is kept: the phase now is all that can be told.
                Err(RecvError::Lagged(_)) => {
                    let now = handle.record();
                    if wanted.is_met(name, now.phase())? {
                        return Ok(as_event(now, handle.cause));
                    }
                    if now.phase() == Phase::Failed && !failed {
                        let reason = now.failure.unwrap_or_default();
                        return Err(ServiceError::FailedMeanwhile { vm: now.name, reason });
                    }
                }
                Err(RecvError::Closed) => return Err(ServiceError::ShuttingDown),
            }
        }
    }
}

fn as_event(record: VmRecord, cause: Cause) -> Event {
    let phase = record.phase();
    let at_rest = matches!(phase, Phase::Stopped | Phase::Hibernated | Phase::Failed);
    Event {
        what: What::Phase {
            from: phase,
            to: phase,
            reason: record.failure,
            stop: at_rest.then_some(record.last_stop).flatten().map(|stop| stop.reason),
        },
        tenant: record.tenant,
        vm: record.id,
        name: record.name,
        cause,
        at_ms: record.updated_ms,
    }
}
