//! Processes started through the agent.

use microvm_api::exec::ProcessList;
use microvm_api::operation::Json;
use microvm_api::operations::process;
use microvm_types::exec::ProcessInfo;

use crate::call::Call;
use crate::failure::Failure;
use crate::listed;
use crate::reply::{Done, Reply};
use crate::session::Session;

pub(crate) async fn list(
    app: Session,
    Call { path: vm, charge, .. }: Call<process::List>,
) -> Result<Reply<Json<ProcessList>>, Failure> {
    let processes = app.guest(&vm).await?.processes().await?;
    let bare = ProcessList { processes: Vec::new() };
    listed::answer(&charge, &bare, "processes", processes, |process: &ProcessInfo| {
        process.command.iter().map(|word| size_of::<String>() + word.capacity()).sum()
    })
}

pub(crate) async fn signal(
    app: Session,
    Call { path: (vm, process), body: request, .. }: Call<process::Signal>,
) -> Result<Done, Failure> {
    check_signal(request.signal)?;
    app.guest(&vm).await?.signal(&process, request.signal).await?;
    Ok(Done)
}

pub(crate) fn check_signal(signal: u8) -> Result<(), Failure> {
    if (1..=64).contains(&signal) {
        Ok(())
    } else {
        Err(Failure::invalid("signal_invalid", format!("{signal} is not a signal: there are 1 to 64")))
    }
}
