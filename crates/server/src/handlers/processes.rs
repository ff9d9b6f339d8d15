//! Processes started through the agent.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use microvm_api::exec::{ProcessList, SendSignal};
use microvm_types::exec::ProcessInfo;

use crate::app::App;
use crate::charge::Charge;
use crate::extract::{Body, Process, Vm};
use crate::failure::Failure;
use crate::listed;

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
) -> Result<Response, Failure> {
    let processes = app.service.guest(&vm).await?.processes().await?;
    let bare = ProcessList { processes: Vec::new() };
    listed::answer(&charge, &bare, "processes", processes, |process: &ProcessInfo| {
        process.command.iter().map(|word| size_of::<String>() + word.capacity()).sum()
    })
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
