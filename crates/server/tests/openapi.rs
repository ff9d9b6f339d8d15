//! The interface as it is promised: a change of it is seen in review, because the committed document changes with it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;

use serde_json::Value;

/// Variable that makes the test write the document instead of comparing it.
const UPDATE: &str = "MICROVM_UPDATE_OPENAPI";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_the_committed_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/openapi-v1.json");
    let server = support::start().await;
    let served: Value = server.client.openapi().await.unwrap();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{served:#}\n")).unwrap();
    }
    // Values, not texts: the order of fields depends on what else is built.
    let committed = std::fs::read(&path).unwrap_or_default();
    let committed: Value = serde_json::from_slice(&committed).unwrap_or_default();
    let difference = difference(&committed, &served, String::new());
    assert_eq!(
        difference, None,
        "the interface and docs/reference/openapi-v1.json differ there; if that is meant, run this test with \
         {UPDATE}=1 and commit the file"
    );
}

/// Where two documents differ first.
fn difference(old: &Value, new: &Value, at: String) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.keys().chain(new.keys()).find_map(|key| {
            let part = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
            difference(&part(old), &part(new), format!("{at}/{key}"))
        }),
        _ => (old != new).then(|| format!("{at}: {old} became {new}")),
    }
}

#[test]
fn differences_are_found() {
    let old = serde_json::json!({ "a": { "b": [1] }, "c": 1 });
    for new in
        [r#"{"a": {"b": [2]}, "c": 1}"#, r#"{"a": {"b": [1]}}"#, r#"{"a": {"b": [1]}, "c": 1, "d": 1}"#]
    {
        assert!(difference(&old, &serde_json::from_str(new).unwrap(), String::new()).is_some(), "{new}");
    }
    assert_eq!(difference(&old, &old, String::new()), None);
}
