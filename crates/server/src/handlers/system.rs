//! The host and the server itself.

use axum::Json;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use microvm_api::document::document;
use microvm_api::operation::{AnyJson, ComponentRef, Lines, MetricsText, Whole};
use microvm_api::operations::{self, system};
use microvm_api::progress::ProgressLine;
use microvm_api::system::{Component, Doctor, Health, HostInfo, Liveness, VmLimits};
use microvm_core::ComponentHealth;
use microvm_types::ErrorKind;
use microvm_types::guest::Verdict;

use crate::call::Call;
use crate::failure::Failure;
use crate::host;
use crate::lines::progress;
use crate::metrics::PoolSize;
use crate::reply::{Done, Reply};
use crate::session::Session;

pub(crate) async fn info(app: Session, _: Call<system::Info>) -> Result<Json<HostInfo>, Failure> {
    let mut info = host::info(&app.settings.root, app.started.elapsed())?;
    let settings = app.services.host.settings()?;
    info.limits = Some(VmLimits {
        vcpus: settings.limits.max_vcpus,
        memory_mib: settings.limits.max_memory_mib,
        disk_mib: settings.limits.max_disk_mib,
        vms: settings.limits.max_vms,
        total_memory_mib: settings.limits.total_memory_mib,
        snapshots_per_vm: settings.snapshots_per_vm,
        command_seconds: Some(app.bounds.command_time.as_secs()),
        command_bytes: Some(app.bounds.command_bytes),
    });
    Ok(Json(info))
}

pub(crate) async fn doctor(app: Session, _: Call<system::Doctor>) -> Json<Doctor> {
    Json(host::doctor(&app).await)
}

pub(crate) async fn verify(app: Session, _: Call<system::Verify>) -> Reply<Lines<ProgressLine>> {
    progress(move |progress| async move {
        let mut findings = app.services.catalog.verify(progress).await?;
        findings.extend(host::stray_findings(&app).await?);
        Ok(ProgressLine::Damage { findings })
    })
}

/// Everything counted so far, with the numbers of VMs as they are now.
pub(crate) async fn metrics(
    app: Session,
    _: Call<system::Metrics>,
) -> Result<Reply<Whole<MetricsText>>, Failure> {
    let recorder = crate::metrics::recorder().ok_or_else(|| {
        Failure::new(ErrorKind::Unavailable, "metrics_unavailable", "this process counts for somebody else")
    })?;
    let phases = app.services.host.phases()?;
    metrics::gauge!("microvm_waiting_vmms").set(gauge(app.services.host.standby_vmms()?));
    for phase in microvm_types::Phase::SHOWN {
        let count = phases.get(&phase).copied().unwrap_or(0);
        metrics::gauge!("microvm_vm_current", "state" => phase.as_str()).set(gauge(count));
    }
    let mut text = recorder.render();
    text.push_str(&crate::metrics::pool_sizes(app.services.host.pools()?.iter().map(|pool| PoolSize {
        tenant: &pool.record.tenant,
        pool: pool.record.name.as_str(),
        ready: pool.waiting,
        handed_out: pool.handed_out,
    })));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    Ok(Reply::whole(text).with(CONTENT_TYPE, kind))
}

fn gauge(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The answer still goes out: requests under way are finished before the server ends.
pub(crate) async fn stop(app: Session, _: Call<system::Stop>) -> Done {
    tracing::info!("ending, as a caller asked");
    app.ending.cancel();
    Done
}

pub(crate) async fn live(app: Session, _: Call<system::Live>) -> Json<Liveness> {
    Json(liveness(&app, "alive"))
}

pub(crate) async fn ready(app: Session, _: Call<system::Ready>) -> Result<Json<Liveness>, Failure> {
    let ill = app.services.host.health().await?.into_iter().filter(|one| one.verdict == Verdict::Unhealthy);
    let reasons: Vec<String> = ill.map(|one| format!("{}: {}", one.name, one.detail)).collect();
    if reasons.is_empty() {
        return Ok(Json(liveness(&app, "ready")));
    }
    let detail = format!("the server cannot serve requests now: {}", reasons.join("; "));
    Err(Failure::new(ErrorKind::Unavailable, "not_ready", detail))
}

pub(crate) async fn health(app: Session, _: Call<system::Health>) -> Result<Json<Health>, Failure> {
    let components = app.services.host.health().await?;
    let status = components.iter().map(|one| one.verdict).max().unwrap_or(Verdict::Healthy);
    Ok(Json(Health {
        status,
        components: components.into_iter().map(component).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        timestamp: app.now(),
    }))
}

pub(crate) async fn health_of(
    app: Session,
    Call { path: ComponentRef(name), .. }: Call<system::HealthOf>,
) -> Result<Json<Component>, Failure> {
    let found = app.services.host.health().await?.into_iter().find(|one| one.name == name);
    found.map(|one| Json(component(one))).ok_or_else(|| {
        let detail = format!("there is no component `{name}`: there are store, hypervisor, disk and guests");
        Failure::new(ErrorKind::NotFound, "component_not_found", detail)
    })
}

fn component(found: ComponentHealth) -> Component {
    Component { name: found.name.to_owned(), status: found.verdict, detail: found.detail }
}

fn liveness(app: &Session, status: &str) -> Liveness {
    Liveness {
        status: status.to_owned(),
        service: "microvm-sandbox".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        timestamp: app.now(),
    }
}

pub(crate) async fn openapi(app: Session, _: Call<system::OpenApi>) -> Reply<AnyJson> {
    let document = || document(operations::all(), env!("CARGO_PKG_VERSION")).to_string().into();
    Reply::json(app.openapi.get_or_init(document).clone())
}
