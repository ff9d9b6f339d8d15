//! The OpenAPI document, made from the table of routes and the schemas of the bodies.

use serde_json::{Map, Value, json};

use crate::routes::{Route, table};

/// The document.
pub(crate) fn document() -> Value {
    let mut paths = Map::new();
    for route in table() {
        let path = format!("{}{}", microvm_api::PREFIX, route.path);
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[route.method.as_str().to_ascii_lowercase()] = operation(&route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "microvm-sandbox",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Disposable virtual machines. Served on a unix socket; callers are known by their process credentials.",
            "license": { "name": "MIT" },
        },
        "paths": paths,
        "components": microvm_api::schemas(),
    })
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(route.query.iter().map(|name| {
        let required = matches!(*name, "path" | "from" | "to");
        json!({ "name": name, "in": "query", "required": required, "schema": { "type": "string" } })
    }));
    let mut operation = json!({
        "operationId": id(route),
        "summary": route.summary,
        "x-permission": route.permission.as_str(),
        "parameters": parameters,
        "responses": {
            route.status.to_string(): answer(route),
            "default": {
                "description": "What went wrong (RFC 9457)",
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            },
        },
    });
    if let Some((status, gives)) = otherwise(route) {
        operation["responses"][status] =
            json!({ "description": "Goes on after the answer", "content": content(gives) });
    }
    if !route.takes.is_empty() {
        operation["requestBody"] = json!({ "content": content(route.takes) });
    }
    operation
}

/// A second way to succeed, where there is one.
fn otherwise(route: &Route) -> Option<(&'static str, &'static str)> {
    // With `wait` false.
    (route.takes == "CreateSnapshot").then_some(("202", "BegunSnapshot"))
}

fn answer(route: &Route) -> Value {
    match route.gives {
        "" => json!({ "description": "Done" }),
        "websocket" => json!({ "description": "Goes on as a WebSocket" }),
        gives => json!({ "description": route.summary, "content": content(gives) }),
    }
}

fn content(what: &str) -> Value {
    match what {
        "application/json" => json!({ "application/json": { "schema": {} } }),
        "application/x-ndjson" => {
            json!({ what: { "schema": { "$ref": "#/components/schemas/ProgressLine" } } })
        }
        media if media.contains('/') => {
            json!({ media: { "schema": { "type": "string", "format": "binary" } } })
        }
        schema => {
            let reference = format!("#/components/schemas/{schema}");
            json!({ "application/json": { "schema": { "$ref": reference } } })
        }
    }
}

/// `GET /vms/{vm}/files/stat` is `get_vms_vm_files_stat`.
fn id(route: &Route) -> String {
    let path: String = route
        .path
        .chars()
        .filter_map(|c| match c {
            '/' | '-' | '.' => Some('_'),
            '{' | '}' => None,
            other => Some(other),
        })
        .collect();
    format!("{}{path}", route.method.as_str().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_schema_named_in_the_table_exists() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for route in table() {
            for name in [route.takes, route.gives] {
                let is_schema = !name.is_empty() && !name.contains('/') && name != "websocket";
                assert!(!is_schema || schemas.contains_key(name), "{route:?} names {name}");
            }
        }
    }

    #[test]
    fn operations_have_ids_of_their_own() {
        let routes = table();
        let ids: BTreeSet<String> = routes.iter().map(id).collect();
        assert_eq!(ids.len(), routes.len());
    }
}
