//! Schemas of the types that operations take and give.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

const REFERENCE: &str = "#/components/schemas/";

/// Schemas by name.
#[derive(Debug, Default)]
pub struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    /// A reference to the schema of a type, which is added with all that it refers to.
    pub fn reference<T: ToSchema>(&mut self) -> Value {
        let name = T::name().into_owned();
        if !self.0.contains_key(&name) {
            let schema = self.inline::<T>();
            self.0.insert(name.clone(), schema);
        }
        json!({ "$ref": format!("{REFERENCE}{name}") })
    }

    /// The schema of a type; all that it refers to is added.
    pub fn inline<T: ToSchema>(&mut self) -> Value {
        let mut referred = Vec::new();
        T::schemas(&mut referred);
        for (name, schema) in referred {
            self.0.entry(name).or_insert_with(|| plain(&schema));
        }
        plain(&T::schema())
    }

    /// All schemas, as in the `components` of a document: the variants of tagged enums have names of their own, and a
    /// discriminator leads to them.
    pub(crate) fn into_components(self) -> Map<String, Value> {
        let mut all = Map::new();
        for (name, mut schema) in self.0.clone() {
            if let Some(alternatives) = self.spread(&schema) {
                schema = json!({ "description": schema["description"], "oneOf": alternatives });
            }
            for (variant, schema) in discriminate(&name, &mut schema) {
                all.insert(variant, schema);
            }
            all.insert(name, schema);
        }
        all
    }
}

impl Schemas {
    /// The alternatives of a struct into which an untagged or externally tagged enum is flattened, each with the fields of the
    /// struct too: generators of clients take the fields of objects together, not those of a choice.
    fn spread(&self, schema: &Value) -> Option<Vec<Value>> {
        let parts = schema.get("allOf")?.as_array()?;
        let choice = |part: &Value| {
            let name = part["$ref"].as_str()?.strip_prefix(REFERENCE)?;
            self.0.get(name)?.get("oneOf")?.as_array()
        };
        let alternatives = parts.iter().find_map(choice)?;
        let fields: Vec<&Value> = parts.iter().filter(|part| choice(part).is_none()).collect();
        alternatives.iter().map(|alternative| together(alternative, &fields)).collect()
    }
}

/// Parameters of a query, from the fields of a struct.
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

/// An object with the fields of others; nothing if one of them has none.
fn together(alternative: &Value, others: &[&Value]) -> Option<Value> {
    let mut whole = alternative.clone();
    for other in others {
        let fields = other.get("properties")?.as_object()?.clone();
        whole.get_mut("properties")?.as_object_mut()?.extend(fields);
        let required = other.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let both = whole["required"].as_array().cloned().unwrap_or_default().into_iter().chain(required);
        whole["required"] = both.collect();
    }
    Some(whole)
}

/// A schema as JSON, with the links of rustdoc taken out of its descriptions.
fn plain(schema: &impl serde::Serialize) -> Value {
    // Schemas are plain data; should one ever not serialise, null fails the document's test.
    let mut value = serde_json::to_value(schema).unwrap_or_default();
    unlink(&mut value);
    value
}

fn unlink(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
            }
            fields.values_mut().for_each(unlink);
        }
        Value::Array(values) => values.iter_mut().for_each(unlink),
        _ => {}
    }
}

/// Gives the variants of a tagged enum names of their own: all of its alternatives are objects that have the same field
/// with one possible value each. Returns them; other schemas have none.
fn discriminate(name: &str, schema: &mut Value) -> Vec<(String, Value)> {
    let Some(alternatives) = schema.get("oneOf").and_then(Value::as_array) else { return Vec::new() };
    let tags: Option<Vec<(String, String)>> = alternatives.iter().map(tag).collect();
    let Some(tags) = tags.filter(|tags| tags.windows(2).all(|two| two[0].0 == two[1].0)) else {
        return Vec::new();
    };
    let Some((field, _)) = tags.first().cloned() else { return Vec::new() };
    let variants: Vec<(String, Value)> = tags
        .iter()
        .zip(alternatives)
        .map(|((_, value), schema)| (format!("{name}{}", capitalised(value)), schema.clone()))
        .collect();
    let to = |variant: &str| format!("{REFERENCE}{variant}");
    let mapping: Map<String, Value> = tags
        .iter()
        .zip(&variants)
        .map(|((_, value), (variant, _))| (value.clone(), to(variant).into()))
        .collect();
    schema["oneOf"] = variants.iter().map(|(variant, _)| json!({ "$ref": to(variant) })).collect();
    schema["discriminator"] = json!({ "propertyName": field, "mapping": mapping });
    variants
}

/// The field of an alternative that has one possible value, and the value.
fn tag(alternative: &Value) -> Option<(String, String)> {
    let parts = alternative.get("allOf").and_then(Value::as_array);
    let objects = parts.map_or(std::slice::from_ref(alternative), Vec::as_slice);
    objects.iter().filter_map(|object| object["properties"].as_object()).flatten().find_map(
        |(field, schema)| match schema["enum"].as_array().map(Vec::as_slice) {
            Some([Value::String(only)]) => Some((field.clone(), only.clone())),
            _ => None,
        },
    )
}

/// `stdin_closed` is `StdinClosed`.
fn capitalised(word: &str) -> String {
    word.split(['_', '-'])
        .flat_map(|part| {
            let mut characters = part.chars();
            characters.next().map(|first| first.to_uppercase().chain(characters).collect::<String>())
        })
        .collect()
}
