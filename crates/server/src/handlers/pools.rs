//! Pools.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use microvm_api::milliseconds::Milliseconds;
use microvm_api::pool::{Acquire, Acquired, CreatePool, Pool, PoolList, ResizePool};
use microvm_core::{AcquireRequest, PoolChange, PoolRequest};
use tokio::time::Instant;

use crate::app::App;
use crate::extract::{Body, Path};
use crate::failure::Failure;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<PoolList> {
    Json(PoolList {
        pools: app.service.pools().into_iter().map(|view| app.pool(view)).collect(),
        unreadable: app.service.unreadable_pools(),
    })
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Pool>, Failure> {
    Ok(Json(app.pool(app.service.pool(&name)?)))
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Body(wish): Body<CreatePool>,
) -> Result<Response, Failure> {
    let request = PoolRequest {
        name: wish.name,
        template: wish.template,
        overrides: wish.overrides,
        min: wish.min,
        max: wish.max,
        max_age_seconds: wish.max_age_seconds,
    };
    let pool = app.pool(app.service.create_pool(request).await?);
    let location = format!("{}/pools/{}", microvm_api::PREFIX, pool.name);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(pool)).into_response())
}

pub(crate) async fn resize(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(wish): Body<ResizePool>,
) -> Result<Json<Pool>, Failure> {
    let change = PoolChange { min: wish.min, max: wish.max, max_age_seconds: wish.max_age_seconds };
    Ok(Json(app.pool(app.service.resize_pool(&name, change).await?)))
}

pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    app.service.remove_pool(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn acquire(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(wish): Body<Acquire>,
) -> Result<Response, Failure> {
    let began = Instant::now();
    let request =
        AcquireRequest { name: wish.name, labels: wish.labels, metadata: wish.metadata, limits: wish.limits };
    let (view, tier) = app.service.acquire(&name, request).await?;
    let body = Acquired {
        vm: app.vm(view),
        tier: tier.as_str().to_owned(),
        duration_ms: Milliseconds::from(began.elapsed()),
    };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}
