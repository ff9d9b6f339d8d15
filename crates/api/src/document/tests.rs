use std::collections::BTreeSet;

use super::*;
use crate::operations;

fn whole() -> Value {
    document(operations::all(), "0.0.0")
}

#[test]
fn every_reference_leads_somewhere() {
    let document = whole();
    let text = document.to_string();
    let mut seen = 0;
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        let schema = &document["components"]["schemas"][name];
        assert!(schema.is_object() || schema.is_boolean(), "no schema for {name}");
        seen += 1;
    }
    assert!(seen > 100, "only {seen} references");
}

#[test]
fn every_operation_and_parameter_is_described() {
    let document = whole();
    let mut ids = BTreeSet::new();
    for (path, entry) in document["paths"].as_object().unwrap() {
        for (method, operation) in entry.as_object().unwrap() {
            let place = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{place}");
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{place}");
            let named: Vec<&str> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            let braces: Vec<&str> =
                path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(named, braces, "{place}");
            for parameter in operation["parameters"].as_array().unwrap() {
                assert!(parameter["description"].is_string(), "{place}: {parameter}");
                let schema = &parameter["schema"];
                assert!(schema["type"].is_string() || schema["$ref"].is_string(), "{place}: {parameter}");
            }
        }
    }
    assert_eq!(ids.len(), operations::all().count());
}

#[test]
fn parameters_have_their_types() {
    let document = whole();
    let parameters = &document["paths"]["/api/v1/vms/{vm}/files"]["get"]["parameters"];
    let found = |name: &str| {
        let mut all = parameters.as_array().unwrap().iter();
        all.find(|parameter| parameter["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(found("path")["required"], true);
    let offset = found("offset");
    assert_eq!((&offset["required"], &offset["schema"]["type"]), (&json!(false), &json!("integer")));
    assert_eq!(
        (&offset["schema"]["default"], &found("length")["schema"]["type"]),
        (&json!(0), &json!("integer"))
    );
    let vms = document["paths"]["/api/v1/vms"]["get"]["parameters"].to_string();
    assert!(vms.contains("\"array\"") && vms.contains("\"boolean\""), "{vms}");
}

#[test]
fn tagged_enums_have_discriminators() {
    let document = whole();
    let schemas = &document["components"]["schemas"];
    let source = &schemas["ImageSource"];
    assert_eq!(source["discriminator"]["propertyName"], "kind");
    assert_eq!(source["discriminator"]["mapping"]["path"], "#/components/schemas/ImageSourcePath");
    assert!(schemas["ImageSourcePath"]["properties"]["path"].is_object());
    assert!(schemas["ClientMessage"]["discriminator"]["mapping"]["stdin_closed"].is_string());
    // No field tells these apart.
    assert!(schemas["CommandLine"].get("discriminator").is_none());
}

#[test]
fn a_choice_within_a_struct_is_a_choice_of_structs() {
    let document = whole();
    let alternatives = document["components"]["schemas"]["Hook"]["oneOf"].as_array().unwrap();
    assert_eq!(alternatives.len(), 2);
    for (alternative, own) in alternatives.iter().zip(["program", "webhook"]) {
        for field in [own, "at", "timeout_ms"] {
            assert!(alternative["properties"][field].is_object(), "{field} of {own}");
        }
        assert_eq!(alternative["required"], json!([own, "at"]));
    }
}

#[test]
fn headers_of_answers_are_described() {
    let document = whole();
    let names = |path: &str, method: &str, status: &str| -> Vec<String> {
        let response = &document["paths"][format!("{PREFIX}{path}")][method]["responses"][status];
        let headers = response["headers"].as_object().expect("every answer has headers");
        for header in headers.values() {
            assert!(
                header["description"].is_string()
                    && (header["schema"].is_object() || header["content"].is_object())
            );
        }
        headers.keys().cloned().collect()
    };
    assert_eq!(names("/vms/{vm}/files", "get", "200"), ["x-content-sha256", "x-file-stat", "x-request-id"]);
    assert_eq!(names("/vms/{vm}/archive", "get", "200"), ["x-content-sha256", "x-left-out", "x-request-id"]);
    assert_eq!(names("/vms/{vm}/console", "get", "200"), ["x-end", "x-offset", "x-request-id"]);
    assert_eq!(names("/snapshots/{vm}", "get", "200"), ["x-request-id", "x-unreadable"]);
    assert_eq!(names("/vms", "post", "201"), ["x-request-id"]);
    assert_eq!(names("/vms", "post", "default"), ["x-request-id"]);
}

/// Whatever a request's body may have is described, and what it may not have is refused.
#[test]
fn bodies_of_requests_have_no_further_fields() {
    fn walk<'a>(
        schema: &'a Value,
        all: &'a Value,
        seen: &mut BTreeSet<&'a str>,
        open: &mut Vec<String>,
        at: &str,
    ) {
        if !schema.is_object() {
            return;
        }
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap();
            if seen.insert(name) {
                walk(&all[name], all, seen, open, name);
            }
            return;
        }
        let properties = schema["properties"].as_object();
        if properties.is_some_and(|properties| !properties.is_empty())
            && schema["additionalProperties"] != false
        {
            open.push(at.to_owned());
        }
        let parts = properties.into_iter().flat_map(|properties| properties.values());
        let lists = ["oneOf", "anyOf", "allOf"].iter().filter_map(|kind| schema[kind].as_array()).flatten();
        for part in parts.chain(lists).chain([&schema["items"], &schema["additionalProperties"]]) {
            walk(part, all, seen, open, at);
        }
    }
    let document = whole();
    let (schemas, mut seen, mut open) = (&document["components"]["schemas"], BTreeSet::new(), Vec::new());
    for entry in document["paths"].as_object().unwrap().values() {
        for operation in entry.as_object().unwrap().values() {
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            walk(body, schemas, &mut seen, &mut open, "a body");
        }
    }
    assert!(seen.len() > 15, "{seen:?}");
    // Choices refuse them as well, which utoipa does not put into the document.
    let choices = ["BuildStep", "ImageSource", "KernelSource", "Hook", "InitMode"];
    open.retain(|name| !choices.iter().any(|choice| name.starts_with(choice)));
    assert_eq!(open, Vec::<String>::new(), "unknown fields of these are taken and ignored");
}

#[test]
fn choices_of_bodies_have_no_further_fields() {
    use microvm_types::template::{Hook, InitMode};

    use crate::image::{BuildStep, ImageSource};
    use crate::kernel::KernelSource;

    fn refuses<T: serde::de::DeserializeOwned + std::fmt::Debug>(good: &Value) {
        serde_json::from_value::<T>(good.clone()).unwrap();
        let mut bad = good.clone();
        bad["surplus"] = json!(1);
        assert!(serde_json::from_value::<T>(bad).is_err(), "{good} with a further field");
    }
    for source in [
        json!({"kind": "path", "path": "/x"}),
        json!({"kind": "registry", "reference": "x"}),
        json!({"kind": "image", "reference": "x"}),
    ] {
        refuses::<ImageSource>(&source);
    }
    refuses::<KernelSource>(&json!({"kind": "file", "path": "/x"}));
    for action in [
        json!({"program": ["/x"], "at": "before_start"}),
        json!({"webhook": "http://x/", "at": "before_start"}),
    ] {
        refuses::<Hook>(&action);
    }
    for step in [
        json!({"kind": "run", "title": "x", "command": ["x"]}),
        json!({"kind": "copy", "title": "x", "context": "/x", "sources": ["x"], "destination": "/x"}),
        json!({"kind": "directory", "title": "x", "path": "/x"}),
    ] {
        refuses::<BuildStep>(&step);
    }
    refuses::<InitMode>(&json!({"image": "/sbin/init"}));
}
