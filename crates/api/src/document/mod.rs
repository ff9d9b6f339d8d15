//! The OpenAPI document: made of the rows of operations and the schemas of their types, and of nothing else.

mod schemas;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::PREFIX;
use crate::operation::Row;
use crate::problem::Problem;

pub use schemas::Schemas;

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

/// The fields of a struct as parameters in a query.
pub(crate) fn query_parameters<Q: ToSchema>(schemas: &mut Schemas) -> Vec<Value> {
    let schema = schemas.inline::<Q>();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let Value::Object(properties) = schema["properties"].clone() else { return Vec::new() };
    properties
        .into_iter()
        .map(|(name, schema)| {
            let mut schema = without_null(schema);
            let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({
                "required": required.contains(&Value::from(name.as_str())),
                "name": name,
                "in": "query",
                "description": about,
                "schema": schema,
            })
        })
        .collect()
}

/// A parameter that is absent is left out: it is never null.
fn without_null(mut schema: Value) -> Value {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|word| word != "null");
        if let [only] = types.as_slice() {
            schema["type"] = only.clone();
        }
    }
    let one_of = schema.get("oneOf").and_then(Value::as_array);
    let some = one_of.and_then(|all| all.iter().find(|schema| schema["type"] != "null")).cloned();
    some.unwrap_or(schema)
}

#[cfg(test)]
mod tests;
