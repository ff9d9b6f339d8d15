//! Waiting for a state of a VM.

use std::time::Duration;

use axum::Json;
use microvm_api::operations::vm;
use microvm_api::query::FilterState;
use microvm_api::vm::Event;
use microvm_core::Wanted;
use microvm_types::{ErrorKind, Phase};

use crate::call::Call;
use crate::failure::Failure;
use crate::session::Session;

/// Longest wait of one request, in seconds.
const LONGEST: u64 = 3_000;

pub(crate) async fn wait(
    app: Session,
    Call { path: vm, query, .. }: Call<vm::Wait>,
) -> Result<Json<Event>, Failure> {
    if !(1..=LONGEST).contains(&query.timeout_seconds) {
        let detail = format!("timeout_seconds: {} is not 1 to {LONGEST}", query.timeout_seconds);
        return Err(Failure::invalid("invalid_field", detail));
    }
    let mut phases: Vec<Phase> = query.state.iter().map(FilterState::phase).collect::<Result<_, _>>()?;
    // Whoever names no state waits for the end of the VM, whichever it is.
    let any_end = phases.is_empty() && !query.gone;
    if any_end {
        phases.extend([Phase::Stopped, Phase::Failed]);
    }
    let wanted = Wanted { phases, gone: query.gone || any_end };
    let waited = app.services.vms.wait(&vm, &wanted);
    let limit = Duration::from_secs(query.timeout_seconds);
    let event = tokio::select! {
        waited = tokio::time::timeout(limit, waited) => waited,
        // A wait may be longer than the server lets requests finish at its end.
        () = app.ending.cancelled() => return Err(microvm_core::ServiceError::ShuttingDown.into()),
    };
    let Ok(event) = event else {
        let state = app.services.vms.get(&vm)?.record.phase();
        let detail = format!("the VM `{vm}` is still {state} after {} s", query.timeout_seconds);
        return Err(Failure::new(ErrorKind::Timeout, "wait_timeout", detail));
    };
    app.event(event?).map(Json).ok_or_else(|| {
        Failure::new(ErrorKind::Internal, "event_unexpected", "the wait ended with an event without a state")
    })
}
