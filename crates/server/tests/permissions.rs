//! Every route of the table, called by nobody and by somebody without permissions.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use axum::http::request::Parts;
use microvm_api::Problem;
use microvm_server::caller::{Authenticator, Caller, Peer};
use microvm_server::{App, router, routes};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

struct Powerless;

impl Authenticator for Powerless {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        Ok(Caller { permissions: Some(Vec::new()), ..Caller::local("nobody") })
    }
}

async fn walk(router: axum::Router, wanted: u16) {
    let mut walked = 0;
    for route in routes::table() {
        for ending in ["", "/"] {
            let path = route.path.replace(['{', '}'], "");
            let request = Request::builder()
                .method(route.method.clone())
                .uri(format!("{}{path}{ending}?path=/", microvm_api::PREFIX))
                .body(Body::empty())
                .unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), wanted, "{route:?}");
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{route:?}");
            assert!(response.headers().contains_key("x-request-id"), "{route:?}");
            walked += 1;
        }
    }
    assert!(walked > 80, "only {walked} routes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_do_anything() {
    let app = App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
    walk(router(Arc::new(app)), 401).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_asks_for_its_permission() {
    let app = App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
    walk(router(Arc::new(app.with_authenticator(Arc::new(Powerless)))), 403).await;
}

#[test]
fn what_is_recommended_is_a_route() {
    let known: Vec<(String, &str)> =
        routes::table().iter().map(|route| (route.method.to_string(), route.path)).collect();
    for action in microvm_types::Action::ALL {
        if let Some((method, path)) = microvm_api::remedy::request(action) {
            assert!(known.contains(&(method.to_owned(), path)), "{action:?}: {method} {path}");
        }
    }
}
