//! Pools.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use microvm_api::milliseconds::Milliseconds;
use microvm_api::pool::{Acquire, Acquired, CreatePool, Pool, PoolList, ResizePool};
use microvm_core::{AcquireRequest, PoolChange, PoolRequest};
use tokio::time::Instant;

use crate::extract::{Body, Path};
use crate::failure::Failure;
use crate::session::Session;

pub(crate) async fn list(app: Session) -> Json<PoolList> {
    Json(PoolList {
        pools: app.services.pools.list().into_iter().map(|view| app.pool(view)).collect(),
        unreadable: app.services.pools.unreadable(),
    })
}

pub(crate) async fn get(app: Session, Path(name): Path<String>) -> Result<Json<Pool>, Failure> {
    Ok(Json(app.pool(app.services.pools.get(&name)?)))
}

pub(crate) async fn create(app: Session, Body(wish): Body<CreatePool>) -> Result<Response, Failure> {
    let request = PoolRequest {
        name: wish.name,
        template: wish.template,
        overrides: wish.overrides,
        min: wish.min,
        max: wish.max,
        max_age_seconds: wish.max_age_seconds,
    };
    let pool = app.pool(app.services.pools.create(request).await?);
    let location = format!("{}/pools/{}", microvm_api::PREFIX, pool.name);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(pool)).into_response())
}

pub(crate) async fn resize(
    app: Session,
    Path(name): Path<String>,
    Body(wish): Body<ResizePool>,
) -> Result<Json<Pool>, Failure> {
    let change = PoolChange { min: wish.min, max: wish.max, max_age_seconds: wish.max_age_seconds };
    Ok(Json(app.pool(app.services.pools.resize(&name, change).await?)))
}

pub(crate) async fn remove(app: Session, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    app.services.pools.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn acquire(
    app: Session,
    Path(name): Path<String>,
    Body(wish): Body<Acquire>,
) -> Result<Response, Failure> {
    let began = Instant::now();
    let request =
        AcquireRequest { name: wish.name, labels: wish.labels, metadata: wish.metadata, limits: wish.limits };
    let (view, tier) = app.services.pools.acquire(&name, request).await?;
    let body = Acquired {
        vm: app.vm(view),
        tier: tier.as_str().to_owned(),
        duration_ms: Milliseconds::from(began.elapsed()),
    };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}
