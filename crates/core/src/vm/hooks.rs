//! Running the hooks of a VM.

use std::time::Duration;

use microvm_types::template::{HookFailure, HookPoint};
use microvm_types::vm::VmRecord;
use serde_json::json;

use crate::error::ServiceError;
use crate::ports::Ports;

/// Runs all hooks of `record` for one point, in order. A `before_*` hook that fails and says `abort` stops the
/// operation; every other failure is logged.
pub(crate) async fn run(ports: &Ports, record: &VmRecord, point: HookPoint) -> Result<(), ServiceError> {
    for hook in record.template.hooks.iter().filter(|hook| hook.at == point) {
        let event = json!({
            "event": hook.at,
            "vm": { "id": record.id, "name": record.name, "phase": record.phase().as_str(), "labels": record.labels,
                    "template": record.template.name },
        });
        // One after the other: a later hook may need what an earlier one has done.
        let Err(cause) = ports.hooks.run(&hook.action, &event, Duration::from_millis(hook.timeout_ms)).await
        else {
            continue;
        };
        tracing::warn!(vm = %record.id, hook = %point, error = %cause, "hook failed");
        if point.may_refuse() && hook.on_failure == HookFailure::Abort {
            return Err(ServiceError::Hook { point: point.to_string(), cause });
        }
    }
    Ok(())
}
