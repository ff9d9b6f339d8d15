//! Processes started through the agent.

use axum::extract::Extension;
use axum::http::StatusCode;
use axum::response::Response;
use microvm_api::exec::{ProcessList, SendSignal};
use microvm_types::exec::ProcessInfo;

use crate::charge::Charge;
use crate::extract::{Body, Process, Vm};
use crate::failure::Failure;
use crate::listed;
use crate::session::Session;

pub(crate) async fn list(
    app: Session,
    Vm(vm): Vm,
    Extension(charge): Extension<Charge>,
) -> Result<Response, Failure> {
    let processes = app.services.vms.guest(&vm).await?.processes().await?;
    let bare = ProcessList { processes: Vec::new() };
    listed::answer(&charge, &bare, "processes", processes, |process: &ProcessInfo| {
        process.command.iter().map(|word| size_of::<String>() + word.capacity()).sum()
    })
}

pub(crate) async fn signal(
    app: Session,
    Vm(vm): Vm,
    Process(process): Process,
    Body(request): Body<SendSignal>,
) -> Result<StatusCode, Failure> {
    check_signal(request.signal)?;
    app.services.vms.guest(&vm).await?.signal(&process, request.signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn check_signal(signal: u8) -> Result<(), Failure> {
    if (1..=64).contains(&signal) {
        Ok(())
    } else {
        Err(Failure::invalid("signal_invalid", format!("{signal} is not a signal: there are 1 to 64")))
    }
}
