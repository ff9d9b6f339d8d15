//! From the table to a running server.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn};
use axum::{Router, response::IntoResponse};
use microvm_types::ErrorKind;

use crate::app::App;
use crate::caller::{Peer, authorise};
use crate::failure::Failure;
use crate::listener::BoundServer;
use crate::observe::{RequestIds, observe};
use crate::routes;

/// How long requests that are under way may still take when the server ends.
const DRAIN: Duration = Duration::from_secs(10);

/// All routes of the table, each behind its permission, with and without a slash at the end.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in routes::table() {
        let authenticator = Arc::clone(&app.authenticator);
        let permission = route.permission;
        let guarded = route.handler.layer(from_fn(move |request: Request, next: Next| {
            authorise(Arc::clone(&authenticator), permission, request, next)
        }));
        for path in [route.path.to_owned(), format!("{}/", route.path)] {
            router = router.route(&format!("{}{path}", microvm_api::PREFIX), guarded.clone());
        }
    }
    let ids = Arc::new(RequestIds::starting_at(app.service.now_ms()));
    router
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
        .layer(DefaultBodyLimit::max(microvm_api::JSON_BODY_MAX))
        .layer(from_fn(move |request: Request, next: Next| observe(Arc::clone(&ids), request, next)))
        .with_state(app)
}

/// Serves until the application's token is cancelled; requests under way get ten seconds then.
///
/// # Errors
/// What the system says if the socket fails.
pub async fn serve(bound: BoundServer, app: App) -> std::io::Result<()> {
    let ending = app.ending.clone();
    let (listener, _unlink) = bound.into_parts();
    let service = router(Arc::new(app)).into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(ending.clone().cancelled_owned());
    tokio::select! {
        result = serving => result,
        never = crate::metrics::upkeep() => match never {},
        () = async { ending.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!("requests were still under way at the end and were cut off");
            Ok(())
        }
    }
}
