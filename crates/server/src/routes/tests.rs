#![allow(unreachable_pub, reason = "rows and what they name are public, as those of the API are")]

use std::collections::BTreeSet;

use axum::Json as Answer;
use microvm_api::document::document;
use microvm_api::operation::{Created, Json};
use microvm_client::Client;
use microvm_types::VmRef;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::*;
use crate::failure::Failure;
use crate::reply::Reply;
use crate::serve::router_of;

#[path = "../../tests/support/mod.rs"]
mod support;

#[test]
fn every_row_has_its_handler() {
    let rows: BTreeSet<&str> = microvm_api::operations::all().map(|row| row.name).collect();
    let bound: Vec<&str> = all().0.iter().map(|(row, _)| row.name).collect();
    let names: BTreeSet<&str> = bound.iter().copied().collect();
    assert_eq!(rows, names);
    assert_eq!(bound.len(), names.len(), "an operation is bound twice");
}

/// Parameters of a greeting.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct Tone {
    /// In capitals.
    #[serde(default)]
    loud: bool,
    /// Number of repetitions.
    times: u32,
}

/// A greeting.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct Greeting {
    /// Its words.
    words: String,
}

/// The greeting.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Said {
    /// To whom.
    vm: String,
    /// All of it.
    words: Vec<String>,
}

// Names and permissions are those of operations that exist: the engine knows no others.
microvm_api::rows! {
    /// Greet a VM
    ///
    /// No operation of ours: it shows what one row gives.
    Greet = GUEST_PROCESSES, Post "/vms/{vm}/greetings", Never, Withheld, (VmRef, Tone) Json<Greeting> => Created<Said>;

    /// Hear what was said
    Hear = VM_STATS, Get "/greetings", Safe, Offered, ((), microvm_api::queries::NoQuery) microvm_api::operation::Nothing => Json<Said>;
}

async fn greet(
    _app: Session,
    Call { path: vm, query, body, .. }: Call<Greet>,
) -> Result<Reply<Created<Said>>, Failure> {
    let words = if query.loud { body.words.to_uppercase() } else { body.words };
    let words = (0..query.times).map(|_| words.clone()).collect();
    Ok(Reply::created(Said { vm: vm.to_string(), words }).at("/greetings"))
}

async fn hear(_app: Session, _: Call<Hear>) -> Answer<Said> {
    Answer(Said { vm: String::new(), words: Vec::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_appears_in_document_router_and_client() {
    let document = document(ROWS, "0");
    let operation = &document["paths"]["/api/v1/vms/{vm}/greetings"]["post"];
    assert_eq!(
        (&operation["operationId"], &operation["x-permission"]),
        (&"guest_processes".into(), &"guest:read".into())
    );
    assert_eq!(operation["description"], "No operation of ours: it shows what one row gives.");
    let parameters = operation["parameters"].as_array().unwrap();
    let kind = |name: &str| {
        let found = parameters.iter().find(|parameter| parameter["name"] == name).unwrap();
        (found["in"].clone(), found["required"].clone(), found["schema"]["type"].clone())
    };
    assert_eq!(kind("vm"), ("path".into(), true.into(), "string".into()));
    assert_eq!(kind("loud"), ("query".into(), false.into(), "boolean".into()));
    assert_eq!(kind("times"), ("query".into(), true.into(), "integer".into()));
    for schema in ["Greeting", "Said", "Problem"] {
        assert!(document["components"]["schemas"][schema].is_object(), "{schema}");
    }

    let folder = tempfile::tempdir().unwrap();
    let root = camino::Utf8Path::from_path(folder.path()).unwrap();
    let app = Arc::new(App::new(support::service().await, support::settings(root), CancellationToken::new()));
    let (listener, _unlink) = crate::BoundServer::bind(root).unwrap().into_parts();
    let (limits, ending) = (app.limits, CancellationToken::new());
    let router = router_of(app, Routes::default().on(Greet, greet).on(Hear, hear));
    let serving = tokio::spawn(crate::connections::serve(listener, router, limits, ending));

    let client = Client::new(crate::socket_path(root));
    let greeting = Greeting { words: "hello".to_owned() };
    let vm = "dev".parse().unwrap();
    let said = client.call::<Greet>(&vm, &Tone { loud: true, times: 2 }, &greeting).await.unwrap();
    assert_eq!(said, Said { vm: "dev".to_owned(), words: vec!["HELLO".to_owned(); 2] });
    let heard = client.call::<Hear>(&(), &microvm_api::queries::NoQuery {}, ()).await.unwrap();
    assert_eq!(heard.words.len(), 0);
    serving.abort();
}
