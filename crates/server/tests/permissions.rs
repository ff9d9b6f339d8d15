//! Every route of the table, called by nobody and by somebody without permissions.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use axum::http::request::Parts;
use microvm_api::operation::Method;
use microvm_api::{Problem, operations};
use microvm_server::caller::{Authenticator, Caller, Peer};
use microvm_server::{App, router};
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
    for route in operations::all() {
        for ending in ["", "/"] {
            // A process and a port are not read before the caller is known.
            let path = route.path.replace(['{', '}'], "");
            let request = Request::builder()
                .method(route.method.as_str())
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

/// May do one thing.
struct Limited(microvm_server::caller::Permission);

impl Authenticator for Limited {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        Ok(Caller { permissions: Some(vec![self.0]), ..Caller::local("somebody") })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permission_of_a_route_is_all_that_its_handler_needs() {
    let mut served = 0;
    for route in operations::all() {
        let app =
            App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
        let router = router(Arc::new(app.with_authenticator(Arc::new(Limited(route.permission)))));
        let path =
            route.path.replace("{port}", "80").replace("{process}", &"0".repeat(20)).replace(['{', '}'], "");
        let request = Request::builder()
            .method(route.method.as_str())
            .uri(format!("{}{path}?path=/x&keep=1", microvm_api::PREFIX))
            .header("content-type", "application/json")
            .body(Body::from(r#"{"name": "x", "path": "/x", "source": {"kind": "image", "reference": "x"}}"#))
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_ne!(response.status().as_u16(), 403, "{route:?}");
        served += usize::from(response.status().is_success());
    }
    assert!(served > 15, "only {served} routes did anything");
}

/// May do everything.
struct Anybody;

impl Authenticator for Anybody {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        Ok(Caller::local("anybody"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_and_paths_that_are_none_are_problems() {
    let app = App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
    let router = router(Arc::new(app.with_authenticator(Arc::new(Anybody))));
    let call = async |method: &str, path: &str| {
        let uri = format!("{}{path}", microvm_api::PREFIX);
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let header = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        (response.status().as_u16(), header("content-type"), header("allow"))
    };
    let problem = || "application/problem+json".to_owned();
    for row in operations::all() {
        let path = row.path.replace(['{', '}'], "");
        for method in ["OPTIONS", "PATCH", "TRACE"] {
            let (status, kind, allow) = call(method, &path).await;
            assert_eq!((status, kind), (405, problem()), "{method} {path}");
            let allowed: Vec<&str> = allow.split(',').map(str::trim).collect();
            assert!(allowed.contains(&row.method.as_str()), "{method} {path}: {allow}");
            let reads = operations::all().any(|other| other.path == row.path && other.method == Method::Get);
            assert_eq!(allowed.contains(&"HEAD"), reads, "{method} {path}: {allow}");
        }
    }
    assert_eq!(call("HEAD", "/vms").await.0, 200);
    assert_eq!(call("HEAD", "/vms/none").await.0, 404);
    let (status, _, allow) = call("HEAD", "/vms/dev/stop").await;
    assert_eq!((status, allow.as_str()), (405, "POST"));
    for path in ["/no-such-thing", "/vms/dev/no-such-thing", "//vms", ""] {
        assert_eq!(call("GET", path).await, (404, problem(), String::new()), "{path}");
    }
}
