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
                .uri(format!("{}{path}{ending}", microvm_api::PREFIX))
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

/// May do some things.
struct Limited(Vec<microvm_server::caller::Permission>);

impl Authenticator for Limited {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        Ok(Caller { permissions: Some(self.0.clone()), ..Caller::local("somebody") })
    }
}

/// The parameters that a route needs to do anything, of those that it has.
fn query_of(route: &microvm_api::operation::Row) -> String {
    let document = microvm_api::document::document(operations::all(), "0.0.0");
    let path = format!("{}{}", microvm_api::PREFIX, route.path);
    let all = document["paths"][path][route.method.as_str().to_lowercase()]["parameters"].as_array().cloned();
    let names: Vec<String> = all
        .into_iter()
        .flatten()
        .filter(|parameter| parameter["in"] == "query")
        .filter_map(|parameter| parameter["name"].as_str().map(str::to_owned))
        .collect();
    let given =
        [("path", "/x"), ("keep", "1")].into_iter().filter(|(name, _)| names.iter().any(|has| has == name));
    given.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_and_fields_that_a_route_does_not_have_are_refused() {
    let app = App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
    let router = router(Arc::new(app.with_authenticator(Arc::new(Anybody))));
    let call = async |method: &str, path: &str, body: &'static str| {
        let uri = format!("{}{path}", microvm_api::PREFIX);
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
        let response = router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    for (method, path, named) in [
        ("GET", "/vms?limit=0&foo=bar", "`limit`"),
        ("GET", "/vms?lable=a%3Db", "`label` was probably meant"),
        ("POST", "/snapshots/dev?incremental=false&parent_snapshot=none", "`parent_snapshot`"),
        ("DELETE", "/vms/dev?force", "`force`"),
        ("GET", "/system/doctor?verbose", "it takes none"),
    ] {
        let (status, text) = call(method, path, "{}").await;
        assert!(status == 400 && text.contains(named), "{method} {path}: {status} {text}");
    }
    // Where everything is known the VM is looked for.
    assert_eq!(call("POST", "/snapshots/dev?incremental=false", "{}").await.0, 404);
    let (status, text) = call("POST", "/snapshots/dev?incremental=true", r#"{"full": true}"#).await;
    assert!(status == 400 && text.contains("says the opposite"), "{status} {text}");
    let mut walked = 0;
    for route in operations::all() {
        let document = microvm_api::document::document(operations::all(), "0.0.0");
        let operation = &document["paths"][format!("{}{}", microvm_api::PREFIX, route.path)]
            [route.method.as_str().to_lowercase()];
        if operation["requestBody"]["content"]["application/json"].is_null() {
            continue;
        }
        let path =
            route.path.replace("{port}", "80").replace("{process}", &"0".repeat(20)).replace(['{', '}'], "");
        let query = query_of(route);
        let (status, text) =
            call(route.method.as_str(), &format!("{path}?{query}"), r#"{"no_such_field": 1}"#).await;
        assert!(status == 400 && text.contains("no_such_field"), "{route:?}: {status} {text}");
        walked += 1;
    }
    assert!(walked > 15, "only {walked} routes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permission_of_a_route_is_all_that_its_handler_needs() {
    let mut served = 0;
    for route in operations::all() {
        let app =
            App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
        let permissions = [Some(route.permission), route.further_permission].into_iter().flatten().collect();
        let router = router(Arc::new(app.with_authenticator(Arc::new(Limited(permissions)))));
        let path =
            route.path.replace("{port}", "80").replace("{process}", &"0".repeat(20)).replace(['{', '}'], "");
        let request = Request::builder()
            .method(route.method.as_str())
            .uri(format!("{}{path}?{}", microvm_api::PREFIX, query_of(route)))
            .header("content-type", "application/json")
            .body(Body::from(r#"{"name": "x", "path": "/x", "source": {"kind": "image", "reference": "x"}}"#))
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_ne!(response.status().as_u16(), 403, "{route:?}");
        served += usize::from(response.status().is_success());
    }
    assert!(served > 15, "only {served} routes did anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_needs_the_permissions_to_read_the_vm_and_to_make_images() {
    use microvm_server::caller::Permission::{GuestFiles, ImageWrite};
    for (held, missing) in [(ImageWrite, "guest:file_transfer"), (GuestFiles, "image:write")] {
        let app =
            App::new(support::service().await, support::settings("/tmp".into()), CancellationToken::new());
        let router = router(Arc::new(app.with_authenticator(Arc::new(Limited(vec![held])))));
        let request = Request::post(format!("{}/images/commit", microvm_api::PREFIX))
            .header("content-type", "application/json")
            .body(Body::from(r#"{"vm": "dev", "name": "mine"}"#))
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 403, "{held:?}");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let problem: Problem = serde_json::from_slice(&bytes).unwrap();
        assert!(problem.detail.contains(missing), "{held:?}: {}", problem.detail);
    }
    let document = microvm_api::document::document(operations::all(), "0.0.0");
    let operation = &document["paths"]["/api/v1/images/commit"]["post"];
    assert_eq!(operation["x-permission"], "image:write");
    assert_eq!(operation["x-further-permission"], "guest:file_transfer");
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
