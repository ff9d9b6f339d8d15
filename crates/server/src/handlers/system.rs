//! The host and the server itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use microvm_api::progress::ProgressLine;
use microvm_api::system::{Doctor, HostInfo, Liveness};

use crate::app::App;
use crate::failure::Failure;
use crate::host;
use crate::lines::progress;

pub(crate) async fn info(State(app): State<Arc<App>>) -> Result<Json<HostInfo>, Failure> {
    Ok(Json(host::info(&app.settings.root, app.started.elapsed())?))
}

pub(crate) async fn doctor(State(app): State<Arc<App>>) -> Json<Doctor> {
    Json(host::doctor(&app).await)
}

pub(crate) async fn verify(State(app): State<Arc<App>>) -> Response {
    progress(move |progress| async move {
        Ok(ProgressLine::Damage { findings: app.service.images().verify_all(progress).await? })
    })
}

pub(crate) async fn live(State(app): State<Arc<App>>) -> Json<Liveness> {
    Json(liveness(&app, "alive"))
}

pub(crate) async fn ready(State(app): State<Arc<App>>) -> Json<Liveness> {
    Json(liveness(&app, "ready"))
}

fn liveness(app: &App, status: &str) -> Liveness {
    Liveness {
        status: status.to_owned(),
        service: "microvm-sandbox".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        timestamp: app.now(),
    }
}

pub(crate) async fn openapi() -> Json<serde_json::Value> {
    Json(crate::openapi::document())
}
