//! Information that a guest gives about itself.

use axum::Json;
use microvm_api::guest::{GuestProcesses, HealthReply, Ping, SystemInfoReply};
use microvm_api::operation::{self, Nothing, Operation};
use microvm_api::operations::guest;
use microvm_types::VmRef;
use microvm_types::guest::GuestProcess;

use crate::call::Call;
use crate::failure::Failure;
use crate::listed;
use crate::reply::Reply;
use crate::session::Session;

pub(crate) async fn ping<O>(app: Session, Call { path: vm, .. }: Call<O>) -> Result<Json<Ping>, Failure>
where
    O: Operation<Path = VmRef, Body = Nothing>,
{
    let guest = app.guest(&vm).await?;
    let round_trip = guest.ping().await?;
    let agent = guest.agent().clone();
    Ok(Json(Ping {
        success: true,
        round_trip_us: u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX),
        agent_version: agent.agent_version.clone(),
        agent,
    }))
}

pub(crate) async fn system_info(
    app: Session,
    Call { path: vm, .. }: Call<guest::SystemInfo>,
) -> Result<Json<SystemInfoReply>, Failure> {
    let system_info = app.guest(&vm).await?.system_info().await?;
    Ok(Json(SystemInfoReply { success: true, system_info, timestamp: app.now() }))
}

pub(crate) async fn processes(
    app: Session,
    Call { path: vm, charge, .. }: Call<guest::Processes>,
) -> Result<Reply<operation::Json<GuestProcesses>>, Failure> {
    let processes = app.guest(&vm).await?.guest_processes().await?;
    let bare = GuestProcesses { success: true, processes: Vec::new(), timestamp: app.now() };
    listed::answer(&charge, &bare, "processes", processes, |process: &GuestProcess| {
        process.command.capacity()
    })
}

pub(crate) async fn health(
    app: Session,
    Call { path: vm, .. }: Call<guest::Health>,
) -> Result<Json<HealthReply>, Failure> {
    let health = app.guest(&vm).await?.health().await?;
    Ok(Json(HealthReply { success: true, health, timestamp: app.now() }))
}
