//! VMs and their life.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use microvm_api::query::Query;
use microvm_api::vm::{Counters, CreateVm, ResizeVm, StopVm, Vm as VmBody, VmList};
use microvm_core::{AcquireRequest, BootChoice, CreateRequest, VmFilter};
use microvm_types::Phase;

use crate::convert;
use crate::extract::{Body, Parameters, Vm};
use crate::failure::Failure;
use crate::session::Session;

/// Most of a console that one answer carries, in bytes.
const CONSOLE_MAX: usize = 16 << 20;

/// Longest time a guest may be given to end its processes.
const GRACE_MAX: Duration = Duration::from_secs(3600);

pub(crate) async fn create(app: Session, Body(request): Body<CreateVm>) -> Result<Response, Failure> {
    if let Some(pool) = &request.pool {
        return acquire(&app, pool.as_str(), &request).await;
    }
    let mut overrides = request.overrides;
    overrides.vcpus = request.vcpus.or(overrides.vcpus);
    overrides.memory_mib = request.memory_mib.or(overrides.memory_mib);
    let request = CreateRequest {
        name: request.name,
        template: request.template,
        overrides,
        labels: request.labels,
        metadata: request.metadata,
        limits: request.limits,
        start: request.start,
        boot: if request.cold { BootChoice::Cold } else { BootChoice::Auto },
    };
    let vm = app.vm(app.services.vms.create(request).await?);
    let location = format!("{}/vms/{}", microvm_api::PREFIX, vm.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(vm)).into_response())
}

/// A VM of a pool: what it is like was said when the pool was made.
async fn acquire(app: &Session, pool: &str, request: &CreateVm) -> Result<Response, Failure> {
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
    let request = AcquireRequest {
        name: request.name.clone(),
        labels: request.labels.clone(),
        metadata: request.metadata.clone(),
        limits: request.limits,
    };
    let (view, _) = app.services.pools.acquire(pool, request).await?;
    let vm = app.vm(view);
    let location = format!("{}/vms/{}", microvm_api::PREFIX, vm.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(vm)).into_response())
}

pub(crate) async fn list(app: Session, Parameters(query): Parameters) -> Result<Json<VmList>, Failure> {
    let filter = filter(&query)?;
    Ok(Json(VmList {
        vms: app.services.vms.list(&filter).into_iter().map(|view| app.vm(view)).collect(),
        unreadable: app.services.vms.unreadable(),
    }))
}

fn filter(query: &Query) -> Result<VmFilter, Failure> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pairs = |name: &'static str| {
        query.all(name).map(text).map(move |pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Failure::invalid(
                "filter_invalid",
                format!("the filter `{name}={pair}` has no `=`: write {name}=KEY=VALUE"),
            )),
        })
    };
    let phase = |word: &[u8]| {
        let found = Phase::SHOWN.into_iter().find(|phase| phase.as_str().as_bytes() == word);
        found.ok_or_else(|| {
            let known: Vec<&str> = Phase::SHOWN.into_iter().map(Phase::as_str).collect();
            let detail = format!("`{}` is not a state: there are {}", text(word), known.join(", "));
            Failure::invalid("filter_invalid", detail)
        })
    };
    Ok(VmFilter {
        labels: pairs("label").collect::<Result<_, _>>()?,
        metadata: pairs("metadata").collect::<Result<_, _>>()?,
        phases: query.all("state").chain(query.all("status")).map(phase).collect::<Result<_, _>>()?,
        name_contains: query.bytes("name")?.map(text),
        waiting: query.value("waiting", "true or false")?.unwrap_or(false),
    })
}

pub(crate) async fn get(app: Session, Vm(vm): Vm) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.get(&vm)?)))
}

pub(crate) async fn delete(app: Session, Vm(vm): Vm) -> Result<StatusCode, Failure> {
    app.services.vms.delete(&vm).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn start(
    app: Session,
    Vm(vm): Vm,
    Parameters(query): Parameters,
) -> Result<Json<VmBody>, Failure> {
    let cold = query.value("cold", "true or false")?.unwrap_or(false);
    let started =
        if cold { app.services.vms.start_cold(&vm).await } else { app.services.vms.start(&vm).await };
    Ok(Json(app.vm(started?)))
}

pub(crate) async fn pause(app: Session, Vm(vm): Vm) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.pause(&vm).await?)))
}

pub(crate) async fn resume(app: Session, Vm(vm): Vm) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.resume(&vm).await?)))
}

pub(crate) async fn stop(app: Session, Vm(vm): Vm, Body(how): Body<StopVm>) -> Result<Json<VmBody>, Failure> {
    let grace = Duration::from_secs(how.grace_seconds).min(GRACE_MAX);
    Ok(Json(app.vm(app.services.vms.stop(&vm, how.force, Some(grace)).await?)))
}

pub(crate) async fn hibernate(app: Session, Vm(vm): Vm) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.hibernate(&vm).await?)))
}

pub(crate) async fn resize(
    app: Session,
    Vm(vm): Vm,
    Body(size): Body<ResizeVm>,
) -> Result<Json<VmBody>, Failure> {
    Ok(Json(app.vm(app.services.vms.resize_memory(&vm, size.memory_mib).await?)))
}

pub(crate) async fn metrics(app: Session, Vm(vm): Vm) -> Result<Json<Counters>, Failure> {
    Ok(Json(convert::counters(&app.services.vms.counters(&vm).await?)))
}

pub(crate) async fn console(
    app: Session,
    Vm(vm): Vm,
    Parameters(query): Parameters,
) -> Result<Response, Failure> {
    let limit = query.value("limit", "a number of bytes")?.unwrap_or(1 << 20).min(CONSOLE_MAX);
    let from = query.value("offset", "a number of bytes")?;
    let console = app.services.vms.console(&vm, from, limit).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (HeaderName::from_static(microvm_api::OFFSET_HEADER), HeaderValue::from(console.offset)),
        (HeaderName::from_static(microvm_api::END_HEADER), HeaderValue::from(console.end)),
    ];
    Ok((headers, console.bytes).into_response())
}
