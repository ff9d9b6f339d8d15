//! From operations to a running server.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn};
use axum::{Router, response::IntoResponse};
use microvm_types::ErrorKind;

use crate::app::App;
use crate::charge::charge;
use crate::connections;
use crate::failure::Failure;
use crate::listener::BoundServer;
use crate::observe::{RequestIds, observe};
use crate::routes::{self, Routes};
use crate::share::Budget;

/// Time for requests under way when the server ends.
const DRAIN: Duration = Duration::from_secs(10);

/// All operations, each behind its permission.
pub fn router(app: Arc<App>) -> Router {
    router_of(app, routes::all())
}

/// A router of these operations, with what surrounds each of them.
pub(crate) fn router_of(app: Arc<App>, routes: Routes) -> Router {
    let ids = Arc::new(RequestIds::starting_at(app.engine.now_ms()));
    let budget = Budget::of(app.limits.bytes);
    routes
        .into_router()
        .fallback(|request: Request| async move {
            let what = format!("{} {}", request.method(), request.uri().path());
            let advice = "the routes are listed at /api/v1/openapi.json";
            Failure::new(ErrorKind::NotFound, "route_not_found", format!("there is no {what}: {advice}"))
                .into_response()
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let what = format!("{} does not accept {}", request.uri().path(), request.method());
            let mut failure =
                Failure::invalid("method_not_allowed", format!("{what}: see /api/v1/openapi.json"));
            failure.0.status = 405;
            failure.into_response()
        })
        // Bodies are limited where they are read: by their route, their time and what their caller holds already.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(move |request: Request, next: Next| charge(Arc::clone(&budget), request, next)))
        // Added last, so outermost: what the layers below refuse is logged, and gets an id, as well.
        .layer(from_fn(move |request: Request, next: Next| observe(Arc::clone(&ids), request, next)))
        .with_state(app)
}

/// Serves until the application's token is cancelled; requests under way get ten seconds then. The engine is closed before
/// the lock of the root is given back.
///
/// # Errors
/// The system's error if the socket fails.
pub async fn serve(bound: BoundServer, app: App) -> std::io::Result<()> {
    let (ending, limits, engine) = (app.ending.clone(), app.limits, Arc::clone(&app.engine));
    let (listener, _unlink) = bound.into_parts();
    let serving = connections::serve(listener, router(Arc::new(app)), limits, ending.clone());
    let served = tokio::select! {
        result = serving => result,
        never = crate::metrics::upkeep() => match never {},
        () = async { ending.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!("requests were still under way at the end and were cut off");
            Ok(())
        }
    };
    // Before the lock is given back: the next server takes the VMs over.
    engine.close().await;
    served
}
