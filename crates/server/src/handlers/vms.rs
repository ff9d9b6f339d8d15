//! VMs and their life.

use std::time::Duration;

use axum::Json;
use axum::http::HeaderName;
use microvm_api::operation::{Bytes, Created, Whole};
use microvm_api::operations::vm;
use microvm_api::queries::ListVms;
use microvm_api::query::{FilterPair, FilterState, RawBytes};
use microvm_api::vm::{Counters, CreateVm, Killed, Stats, Vm as VmBody, VmList};
use microvm_core::{AcquireRequest, BootChoice, CreateRequest, VmFilter};
use microvm_types::vm::NewVm;

use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::processes::check_signal;
use crate::reply::{Done, Reply};
use crate::session::Session;

/// Most of a console that one answer carries, in bytes.
const CONSOLE_MAX: usize = 16 << 20;

/// Longest time a guest may be given to end its processes.
const GRACE_MAX: Duration = Duration::from_secs(3600);

pub(crate) async fn create(
    app: Session,
    Call { body: request, .. }: Call<vm::Create>,
) -> Result<Reply<Created<VmBody>>, Failure> {
    if let Some(pool) = &request.pool {
        return acquire(&app, pool.as_str(), &request).await;
    }
    let mut overrides = request.overrides;
    // Both may be given in either place; the outer one wins.
    overrides.vcpus = request.vcpus.or(overrides.vcpus);
    overrides.memory_mib = request.memory_mib.or(overrides.memory_mib);
    let request = CreateRequest {
        name: request.name,
        template: request.template,
        overrides,
        vm: NewVm { labels: request.labels, metadata: request.metadata, limits: request.limits },
        start: request.start,
        boot: if request.cold { BootChoice::Cold } else { BootChoice::Auto },
    };
    let vm = app.vm(app.services.vms.create(request).await?);
    let location = format!("/vms/{}", vm.id);
    Ok(Reply::created(vm).at(&location))
}

/// A VM of a pool: what it is like was said when the pool was made.
async fn acquire(app: &Session, pool: &str, request: &CreateVm) -> Result<Reply<Created<VmBody>>, Failure> {
    // Compared as a whole, so that a field which is added later is refused here without a line of its own.
    let plain = CreateVm {
        name: request.name.clone(),
        labels: request.labels.clone(),
        metadata: request.metadata.clone(),
        limits: request.limits,
        pool: request.pool.clone(),
        ..CreateVm::default()
    };
    if *request != plain {
        return Err(Failure::invalid(
            "pool_fixed",
            format!(
                "VMs of the pool `{pool}` are made already: only name, labels, metadata and limits can be chosen"
            ),
        ));
    }
    let vm =
        NewVm { labels: request.labels.clone(), metadata: request.metadata.clone(), limits: request.limits };
    let request = AcquireRequest { name: request.name.clone(), vm };
    let (view, _) = app.services.pools.acquire(pool, request).await?;
    let vm = app.vm(view);
    let location = format!("/vms/{}", vm.id);
    Ok(Reply::created(vm).at(&location))
}

pub(crate) async fn list(app: Session, Call { query, .. }: Call<vm::List>) -> Result<Json<VmList>, Failure> {
    let filter = filter(&query)?;
    Ok(Json(VmList {
        vms: app.services.vms.list(&filter)?.into_iter().map(|view| app.vm(view)).collect(),
        unreadable: app.services.vms.unreadable()?,
    }))
}

fn filter(query: &ListVms) -> Result<VmFilter, Failure> {
    let text = |bytes: &RawBytes| String::from_utf8_lossy(&bytes.0).into_owned();
    Ok(VmFilter {
        labels: query.label.iter().map(FilterPair::pair).collect::<Result<_, _>>()?,
        metadata: query.metadata.iter().map(FilterPair::pair).collect::<Result<_, _>>()?,
        phases: query.state.iter().chain(&query.status).map(FilterState::phase).collect::<Result<_, _>>()?,
        name_contains: query.name.as_ref().map(text),
        waiting: query.waiting,
    })
}

pub(crate) async fn get(app: Session, Call { path: vm, .. }: Call<vm::Get>) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.get(&vm)?)))
}

pub(crate) async fn delete(
    app: Session,
    Call { path: vm, query, .. }: Call<vm::Delete>,
) -> Result<Done, Failure> {
    app.services.vms.delete(&vm, query.forget_disks).await?;
    Ok(Done)
}

pub(crate) async fn start(
    app: Session,
    Call { path: vm, query, .. }: Call<vm::Start>,
) -> Result<Json<VmBody>, Failure> {
    let started =
        if query.cold { app.services.vms.start_cold(&vm).await } else { app.services.vms.start(&vm).await };
    Ok(Json(app.vm(started?)))
}

pub(crate) async fn pause(
    app: Session,
    Call { path: vm, .. }: Call<vm::Pause>,
) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.pause(&vm).await?)))
}

pub(crate) async fn resume(
    app: Session,
    Call { path: vm, .. }: Call<vm::Resume>,
) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.resume(&vm).await?)))
}

pub(crate) async fn stop(
    app: Session,
    Call { path: vm, body: how, .. }: Call<vm::Stop>,
) -> Result<Json<VmBody>, Failure> {
    let grace = Duration::from_secs(how.grace_seconds).min(GRACE_MAX);
    Ok(Json(app.vm(app.services.vms.stop(&vm, how.force, Some(grace)).await?)))
}

pub(crate) async fn restart(
    app: Session,
    Call { path: vm, body: how, .. }: Call<vm::Restart>,
) -> Result<Json<VmBody>, Failure> {
    let grace = Duration::from_secs(how.grace_seconds).min(GRACE_MAX);
    Ok(Json(app.vm(app.services.vms.restart(&vm, how.force, Some(grace)).await?)))
}

pub(crate) async fn kill(
    app: Session,
    Call { path: vm, body: request, .. }: Call<vm::Kill>,
) -> Result<Json<Killed>, Failure> {
    check_signal(request.signal)?;
    let (processes, view) = app.services.vms.kill(&vm, request.signal).await?;
    Ok(Json(Killed { processes, vm: app.vm(view) }))
}

pub(crate) async fn stats(
    app: Session,
    Call { path: vm, .. }: Call<vm::Stats>,
) -> Result<Json<Stats>, Failure> {
    let stats = app.services.vms.stats(&vm).await?;
    Ok(Json(app.stats(stats)))
}

pub(crate) async fn hibernate(
    app: Session,
    Call { path: vm, .. }: Call<vm::Hibernate>,
) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.hibernate(&vm).await?)))
}

pub(crate) async fn resize(
    app: Session,
    Call { path: vm, body: size, .. }: Call<vm::Resize>,
) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.resize(&vm, size.memory_mib, size.vcpus).await?)))
}

pub(crate) async fn metrics(
    app: Session,
    Call { path: vm, .. }: Call<vm::Metrics>,
) -> Result<Json<Counters>, Failure> {
    Ok(Json(app.services.vms.counters(&vm).await?))
}

pub(crate) async fn console(
    app: Session,
    Call { path: vm, query, .. }: Call<vm::Console>,
) -> Result<Reply<Whole<Bytes>>, Failure> {
    let console = app.services.vms.console(&vm, query.offset, query.limit.min(CONSOLE_MAX)).await?;
    Ok(Reply::whole(console.bytes)
        .with(HeaderName::from_static(microvm_api::OFFSET_HEADER), console.offset)
        .with(HeaderName::from_static(microvm_api::END_HEADER), console.end))
}
