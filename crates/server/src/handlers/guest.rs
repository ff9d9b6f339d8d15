//! Information that a guest gives about itself.

use std::time::Duration;

use axum::Json;
use futures_util::StreamExt as _;
use microvm_api::guest::{GuestProcesses, GuestsHealth, HealthOfGuest, HealthReply, Ping, SystemInfoReply};
use microvm_api::operation::{self, Nothing, Operation};
use microvm_api::operations::guest;
use microvm_api::vm::Vm;
use microvm_core::VmFilter;
use microvm_ports::waiting::within;
use microvm_types::guest::{GuestProcess, Verdict};
use microvm_types::{Name, OperationName, Phase, VmId, VmRef};

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

pub(crate) async fn shutdown(
    app: Session,
    Call { path: vm, body: how, .. }: Call<guest::Shutdown>,
) -> Result<Json<Vm>, Failure> {
    let delay = Duration::from_secs(how.delay_seconds);
    Ok(Json(app.vm(app.services.vms.shutdown(&vm, delay, how.force).await?)))
}

pub(crate) async fn health(
    app: Session,
    Call { path: vm, .. }: Call<guest::Health>,
) -> Result<Json<HealthReply>, Failure> {
    let health = app.guest(&vm).await?.health().await?;
    let verdict = health.verdict();
    Ok(Json(HealthReply { success: true, health, verdict, timestamp: app.now() }))
}

/// Time for the answers of one guest among all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Guests that are asked at once.
const AT_ONCE: usize = 16;

pub(crate) async fn health_of_all(
    app: Session,
    _: Call<guest::HealthOfAll>,
) -> Result<Json<GuestsHealth>, Failure> {
    let all = app.services.vms.list(&VmFilter::default())?;
    let asked =
        all.into_iter().map(|vm| health_of_one(&app, vm.record.id, vm.record.name, vm.record.life.phase()));
    let vms = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
    Ok(Json(GuestsHealth { vms, timestamp: app.now() }))
}

async fn health_of_one(app: &Session, id: VmId, name: Name, state: Phase) -> HealthOfGuest {
    let mut found =
        HealthOfGuest { id, name, state, verdict: None, round_trip_us: None, health: None, error: None };
    if state == Phase::Failed {
        found.verdict = Some(Verdict::Unhealthy);
    }
    // One that rests is not woken.
    if state != Phase::Running {
        return found;
    }
    let asked = async {
        // Who looks at all VMs uses none of them: their idle limits go on.
        let reference = VmRef::from(found.id.clone());
        let guest = app.services.vms.guest_at_hand(&reference, OperationName::GUEST_HEALTH_OF_ALL);
        let guest = guest.map_err(|error| error.to_string())?;
        let guest = guest.ok_or_else(|| "its agent does not answer".to_owned())?;
        let round_trip = guest.ping().await.map_err(|error| error.to_string())?;
        let health = guest.health().await.map_err(|error| error.to_string())?;
        Ok::<_, String>((round_trip, health))
    };
    let answer = within(PATIENCE, asked).await;
    match answer.unwrap_or_else(|_| Err(format!("it did not answer within {PATIENCE:?}"))) {
        Ok((round_trip, health)) => {
            found.round_trip_us = Some(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
            found.verdict = Some(health.verdict());
            found.health = Some(health);
        }
        Err(error) => (found.verdict, found.error) = (Some(Verdict::Unhealthy), Some(error)),
    }
    found
}
