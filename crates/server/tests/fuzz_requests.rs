//! Fuzzing of whole requests against every route, on fakes: no answer blames the server, and every refusal is a problem.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Request, Uri};
use camino::Utf8Path;
use http_body_util::{BodyExt as _, Limited};
use microvm_api::{Problem, operations};
use microvm_fuzz::Fuzz;
use microvm_server::caller::{Authenticator, Caller, Peer};
use microvm_server::{App, router};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Longest time for one answer. The runtime's clock jumps when nothing else is to be done, so this costs no time.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// May do everything.
struct Anybody;

impl Authenticator for Anybody {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        Ok(Caller::local("fuzzer"))
    }
}

/// Method and path of every operation.
fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    operations::all().map(|row| (row.method.as_str().parse().unwrap(), row.path))
}

/// The first byte chooses a route; the first line is its parameter and its query, the rest its body.
async fn answer(router: Router, routes: &[(Method, &'static str)], input: &[u8]) -> String {
    let Some((choice, rest)) = input.split_first() else { return String::new() };
    let (method, route) = &routes[usize::from(*choice) % routes.len()];
    let (line, body) = rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    let line = String::from_utf8_lossy(line);
    let (name, query) = line.split_once('?').unwrap_or((&line, ""));
    let path: Vec<&str> =
        route.split('/').map(|part| if part.starts_with('{') { name } else { part }).collect();
    let Ok(uri) = format!("{}{}?{query}", microvm_api::PREFIX, path.join("/")).parse::<Uri>() else {
        return "no address".to_owned();
    };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.as_bytes().to_vec());
    if status < 400 {
        return format!("{route} fine");
    }
    let body = Limited::new(response.into_body(), 1 << 20).collect().await.unwrap().to_bytes();
    assert!(status != 500, "{method} {route}: {}", String::from_utf8_lossy(&body));
    assert_eq!(kind.as_deref(), Some(&b"application/problem+json"[..]), "{method} {route}: {status}");
    let problem: Problem = serde_json::from_slice(&body).expect("a problem can be read");
    assert_eq!(problem.status, status, "{method} {route}");
    format!("{route} {}", problem.code)
}

#[test]
fn requests_of_hostile_callers() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let _context = runtime.enter();
    let service = runtime.block_on(support::service());
    // Of its own: what others have left in a shared folder is none of its findings.
    let root = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(root.path()).unwrap();
    let app = App::new(service, support::settings(folder), CancellationToken::new());
    let router = router(Arc::new(app.with_authenticator(Arc::new(Anybody))));
    let routes: Vec<_> = routes().collect();
    let place = |method: Method, path: &str| {
        let found = routes.iter().position(|route| *route == (method.clone(), path)).unwrap();
        u8::try_from(found).unwrap()
    };
    let seed = |method, path, rest: &str| [&[place(method, path)], rest.as_bytes()].concat();
    Fuzz::new("routes")
        .seed(seed(Method::POST, "/vms", "?\n{\"name\":\"a\",\"labels\":{\"a\":\"b\"}}"))
        .seed(seed(Method::GET, "/vms", "?label=a%3Db&state=running&waiting"))
        .seed(seed(Method::POST, "/vms/{vm}/stop", "a?\n{\"force\":true}"))
        .seed(seed(Method::POST, "/vms/{vm}/resize", "a?\n{\"memory_mib\":300}"))
        .seed(seed(
            Method::POST,
            "/vms/{vm}/guest/execute",
            "a?\n{\"command\":[\"echo\",\"x\"],\"timeout\":5}",
        ))
        .seed(seed(Method::GET, "/vms/{vm}/files", "a?path=/etc/hosts&offset=1&length=5"))
        .seed(seed(Method::PUT, "/vms/{vm}/files", "a?path=/x&mode=644&owner=1:2&parents=1\ncontent"))
        .seed(seed(Method::GET, "/vms/{vm}/files/list", "a?path=/&depth=3"))
        .seed(seed(Method::POST, "/vms/{vm}/fork", "a?\n{\"count\":1,\"names\":[\"b\"]}"))
        .seed(seed(Method::POST, "/snapshots/{vm}", "a?\n{\"name\":\"s\"}"))
        .seed(seed(Method::POST, "/snapshots/cleanup", "?older_than_seconds=5&keep=2"))
        .seed(seed(
            Method::POST,
            "/pools",
            "?\n{\"name\":\"p\",\"template\":\"linux-default\",\"minimum\":0}",
        ))
        .seed(seed(Method::POST, "/pools/{pool}/acquire", "p?\n{\"name\":\"c\"}"))
        .words(&[
            b"a?",
            b"path=/",
            b"path=/%00",
            b"&",
            b"\n{}",
            b"null",
            b"-1",
            b"[]",
            b"%2e%2e",
            b"/",
            b"18446744073709551615",
        ])
        // What the fakes keep is part of it.
        .memory(64 << 20, 1_024)
        .run(|input| {
            runtime.block_on(async {
                let answer = tokio::time::timeout(PATIENCE, answer(router.clone(), &routes, input)).await;
                answer.unwrap_or_else(|_| "waits".to_owned())
            })
        });
}

#[test]
fn a_name_that_is_no_text_is_a_problem_on_every_route() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let service = runtime.block_on(support::service());
    // Of its own: what others have left in a shared folder is none of its findings.
    let root = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(root.path()).unwrap();
    let app = App::new(service, support::settings(folder), CancellationToken::new());
    let router = router(Arc::new(app.with_authenticator(Arc::new(Anybody))));
    let routes: Vec<_> = routes().filter(|(_, path)| path.contains('{')).collect();
    for index in 0..u8::try_from(routes.len()).unwrap() {
        let told =
            runtime.block_on(answer(router.clone(), &routes, &[&[index], &b"%90?path=/\n{}"[..]].concat()));
        assert!(!told.ends_with("fine"), "{told}");
    }
}
