//! The OpenAPI document: made of the rows of operations and the schemas of their types, and of nothing else.

use serde_json::{Map, Value, json};

use crate::PREFIX;
use crate::operation::Row;
use crate::problem::Problem;
use crate::schemas::Schemas;

/// The document of these operations, for a program of this version.
#[must_use]
pub fn document<'a>(rows: impl IntoIterator<Item = &'a Row>, version: &str) -> Value {
    let mut schemas = Schemas::default();
    let (mut paths, mut tags) = (Map::new(), Vec::new());
    for row in rows {
        let entry = paths.entry(format!("{PREFIX}{}", row.path)).or_insert_with(|| json!({}));
        entry[row.method.key()] = row.describe(&mut schemas);
        if !tags.contains(&row.tag()) {
            tags.push(row.tag());
        }
    }
    // Every operation may answer with it.
    schemas.reference::<Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "microvm-sandbox",
            "version": version,
            "description": "Disposable virtual machines. Served on a unix socket; callers are known by their process credentials.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/", "description": "The unix socket of a server: <root>/run/api.sock" }],
        "tags": tags.into_iter().map(|tag| json!({ "name": tag })).collect::<Vec<_>>(),
        "paths": paths,
        "components": { "schemas": schemas.into_components() },
    })
}

#[cfg(test)]
mod tests;
