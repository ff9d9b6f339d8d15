//! Pools.

use axum::Json;
use microvm_api::milliseconds::Milliseconds;
use microvm_api::operation::{Created, PoolRef};
use microvm_api::operations::pool;
use microvm_api::pool::{Acquired, Pool, PoolList, Released};
use microvm_core::{AcquireRequest, PoolChange, PoolRequest};
use microvm_types::vm::NewVm;
use tokio::time::Instant;

use crate::call::Call;
use crate::failure::Failure;
use crate::reply::{Done, Reply};
use crate::session::Session;

pub(crate) async fn list(app: Session, _: Call<pool::List>) -> Result<Json<PoolList>, Failure> {
    Ok(Json(PoolList {
        pools: app.services.pools.list()?.into_iter().map(|view| app.pool(view)).collect(),
        unreadable: app.services.pools.unreadable()?,
    }))
}

pub(crate) async fn get(
    app: Session,
    Call { path: PoolRef(name), .. }: Call<pool::Get>,
) -> Result<Json<Pool>, Failure> {
    Ok(Json(app.pool(app.services.pools.get(&name)?)))
}

pub(crate) async fn create(
    app: Session,
    Call { body: wish, .. }: Call<pool::Create>,
) -> Result<Reply<Created<Pool>>, Failure> {
    let request = PoolRequest {
        name: wish.name,
        template: wish.template,
        overrides: wish.overrides,
        labels: wish.labels,
        metadata: wish.metadata,
        min: wish.min,
        max: wish.max,
        max_age_seconds: wish.max_age_seconds,
    };
    let pool = app.pool(app.services.pools.create(request).await?);
    let location = format!("/pools/{}", pool.name);
    Ok(Reply::created(pool).at(&location))
}

pub(crate) async fn resize(
    app: Session,
    Call { path: PoolRef(name), body: wish, .. }: Call<pool::Resize>,
) -> Result<Json<Pool>, Failure> {
    let change = PoolChange { min: wish.min, max: wish.max, max_age_seconds: wish.max_age_seconds };
    Ok(Json(app.pool(app.services.pools.resize(&name, change).await?)))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: PoolRef(name), .. }: Call<pool::Remove>,
) -> Result<Done, Failure> {
    app.services.pools.remove(&name).await?;
    Ok(Done)
}

pub(crate) async fn acquire(
    app: Session,
    Call { path: PoolRef(name), body: wish, .. }: Call<pool::Acquire>,
) -> Result<Reply<Created<Acquired>>, Failure> {
    let began = Instant::now();
    let vm = NewVm { labels: wish.labels, metadata: wish.metadata, limits: wish.limits };
    let request = AcquireRequest { name: wish.name, vm };
    let (view, tier) = app.services.pools.acquire(&name, request).await?;
    let body = Acquired {
        vm: app.vm(view),
        tier: tier.as_str().to_owned(),
        duration_ms: Milliseconds::from(began.elapsed()),
    };
    Ok(Reply::created(body))
}

pub(crate) async fn release(
    app: Session,
    Call { path: PoolRef(name), body: wish, .. }: Call<pool::Release>,
) -> Result<Json<Released>, Failure> {
    let replaced = app.services.pools.release(&name, &wish.vm.parse()?).await?;
    Ok(Json(Released { replaced }))
}
