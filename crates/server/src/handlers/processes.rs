//! Processes started through the agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use microvm_api::exec::{ProcessList, SendSignal};

use crate::app::App;
use crate::extract::{Body, Process, Vm};
use crate::failure::Failure;

pub(crate) async fn list(State(app): State<Arc<App>>, Vm(vm): Vm) -> Result<Json<ProcessList>, Failure> {
    let processes = app.service.guest(&vm).await?.processes().await?;
    Ok(Json(ProcessList { processes }))
}

pub(crate) async fn signal(
    State(app): State<Arc<App>>,
    Vm(vm): Vm,
    Process(process): Process,
    Body(request): Body<SendSignal>,
) -> Result<StatusCode, Failure> {
    check_signal(request.signal)?;
    app.service.guest(&vm).await?.signal(&process, request.signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn check_signal(signal: u8) -> Result<(), Failure> {
    if (1..=64).contains(&signal) {
        Ok(())
    } else {
        Err(Failure::invalid("signal_invalid", format!("{signal} is not a signal: there are 1 to 64")))
    }
}
