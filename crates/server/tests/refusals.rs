//! Every operation on a VM, on a VM in every phase: what is done, and the whole text of what is refused.
//! `MICROVM_UPDATE_SNAPSHOTS=1` writes `refusals.txt` anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::http::request::Parts;
use http_body_util::BodyExt as _;
use microvm_api::{Problem, Vm, operations};
use microvm_driver_fake::FakeHypervisor;
use microvm_ports::failure::MachineExit;
use microvm_server::caller::{Authenticator, Caller, Peer};
use microvm_server::{App, router};
use microvm_types::Phase;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

struct Anybody;

impl Authenticator for Anybody {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        Ok(Caller::local("anybody"))
    }
}

/// Query and body of an operation that needs some; all others get an empty request.
fn asked(operation: &str) -> (&'static str, &'static str) {
    match operation {
        "vm.kill" => ("", r#"{"signal": 15}"#),
        "vm.rename" => ("", r#"{"name": "renamed"}"#),
        "vm.resize" => ("", r#"{"memory_mib": 256}"#),
        "vm.update" => ("", r#"{"labels": {"a": "b"}}"#),
        "vm.wait" => ("state=running&state=paused&state=stopped&state=hibernated&state=failed", ""),
        "vm.fork" => ("", r#"{"count": 1}"#),
        "file.rename" => ("from=/etc/hostname&to=/etc/name", ""),
        "process.signal" => ("", r#"{"signal": 15}"#),
        "context.execute" => ("", r#"{"code": "1"}"#),
        "file.write_encoded" => ("", r#"{"path": "/etc/hostname", "content": ""}"#),
        "guest.execute" => ("", r#"{"command": ["true"]}"#),
        name if name.starts_with("file.") => ("path=/etc/hostname", ""),
        _ => ("", "{}"),
    }
}

/// A server on fakes, and its hypervisor.
async fn server() -> (Router, FakeHypervisor) {
    let hypervisor = FakeHypervisor::default();
    let service = support::service_on(hypervisor.clone()).await;
    let app = App::new(service, support::settings("/tmp".into()), CancellationToken::new());
    (router(Arc::new(app.with_authenticator(Arc::new(Anybody)))), hypervisor)
}

/// Sends a request; returns the status and, unless it went well, what its problem says.
async fn call(router: &Router, method: &str, path: &str, body: &str) -> (u16, Option<Problem>) {
    let request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", microvm_api::PREFIX))
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    if status < 300 {
        return (status, None);
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, Some(serde_json::from_slice(&body).unwrap()))
}

/// The VM as the server shows it.
async fn shown(router: &Router, vm: &str) -> Vm {
    let uri = format!("{}/vms/{vm}", microvm_api::PREFIX);
    let response = router.clone().oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap();
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// Brings a new VM into a phase; returns whether users can bring that about and it stays.
async fn bring(router: &Router, hypervisor: &FakeHypervisor, phase: Phase) -> bool {
    let post = async |path: &str, body: &str| {
        let (status, problem) = call(router, "POST", path, body).await;
        assert!(status < 300, "{path}: {problem:?}");
    };
    post("/vms", r#"{"name": "dev"}"#).await;
    match phase {
        Phase::Running => {}
        Phase::Paused => post("/vms/dev/pause", "").await,
        Phase::Stopped => post("/vms/dev/stop", "{}").await,
        Phase::Hibernated => post("/vms/dev/hibernate", "").await,
        Phase::Failed => {
            let id = shown(router, "dev").await.id;
            assert!(hypervisor.end(&id, MachineExit::GuestPanic));
            let (status, problem) = call(router, "GET", "/vms/dev/wait?state=failed", "").await;
            assert_eq!(status, 200, "{problem:?}");
        }
        Phase::Creating
        | Phase::Starting
        | Phase::Pooled
        | Phase::Stopping
        | Phase::Deleting
        | Phase::Deleted => return false,
    }
    assert_eq!(shown(router, "dev").await.state, phase);
    true
}

/// A line of the committed file: what came of one operation in one phase.
fn line(operation: &str, outcome: (u16, Option<Problem>), id: &str) -> String {
    let (status, problem) = outcome;
    let Some(problem) = problem else { return format!("  {operation}: {status}\n") };
    let mut line = format!("  {operation}: {status} {}: {}", problem.code, problem.detail.replace(id, "ID"));
    for advice in problem.remedies {
        let request = advice.request.as_deref().unwrap_or("no request").replace(id, "ID");
        let _ = write!(line, " [{:?}: {request}]", advice.action);
    }
    line + "\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_operation_says_in_every_phase_is_as_committed() {
    let mut text = String::new();
    let mut refused = 0;
    for phase in Phase::SHOWN {
        let (router, hypervisor) = server().await;
        if !bring(&router, &hypervisor, phase).await {
            continue;
        }
        let _ = writeln!(text, "{phase}");
        for row in
            operations::all().filter(|row| row.path.contains("{vm}") && !row.path.contains("{snapshot}"))
        {
            // A new server for each: an operation may change the phase. Web sockets need a connection.
            if matches!(row.name, "guest.exec" | "guest.connect" | "event.of_vm") {
                continue;
            }
            let (router, hypervisor) = server().await;
            assert!(bring(&router, &hypervisor, phase).await);
            let id = shown(&router, "dev").await.id.to_string();
            let (query, body) = asked(row.name);
            let path = row
                .path
                .replace("{vm}", "dev")
                .replace("{process}", &"0".repeat(20))
                .replace("{context}", "python");
            let outcome = call(&router, row.method.as_str(), &format!("{path}?{query}"), body).await;
            assert!(outcome.0 != 500, "{phase} {}: {:?}", row.name, outcome.1);
            let problem = outcome.1.as_ref();
            assert!(
                problem.is_none_or(|problem| !problem.code.ends_with("_invalid")),
                "{}: `asked` is to give it a request that is valid: {problem:?}",
                row.name
            );
            refused += usize::from(problem.is_some());
            text += &line(row.name, outcome, &id);
        }
    }
    assert!(refused > 40, "only {refused} were refused");
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refusals.txt");
    if std::env::var_os("MICROVM_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let changed: Vec<&str> =
        text.lines().filter(|line| !committed.lines().any(|known| known == *line)).collect();
    assert!(committed == text, "MICROVM_UPDATE_SNAPSHOTS=1 writes it anew; new lines: {changed:#?}");
}
