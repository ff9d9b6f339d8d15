//! Rows: operations without their types.

use microvm_types::caller::Permission;
use serde_json::{Value, json};

use super::answer::with_headers;
use super::{Answer, Mcp, Method, Operation, PathParameters, RequestBody, Retry, header};
use crate::problem::Problem;
use crate::schemas::{Schemas, query_parameters};

/// An [`Operation`] without its types, for code that needs all of them.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// See [`Operation::NAME`].
    pub name: &'static str,
    /// See [`Operation::METHOD`].
    pub method: Method,
    /// See [`Operation::PATH`].
    pub path: &'static str,
    /// See [`Operation::PERMISSION`].
    pub permission: Permission,
    /// See [`Operation::FURTHER_PERMISSION`].
    pub further_permission: Option<Permission>,
    /// See [`Operation::RETRY`].
    pub retry: Retry,
    /// See [`Operation::MCP`].
    pub mcp: Mcp,
    /// Status of success.
    pub status: u16,
    /// Names of the parameters in the path, in order.
    pub path_names: &'static [&'static str],
    documentation: &'static [&'static str],
    describe: fn(&Row, &mut Schemas) -> Value,
}

impl Row {
    /// The row of an operation.
    #[must_use]
    pub const fn of<O: Operation>() -> Self {
        Self {
            name: O::NAME,
            method: O::METHOD,
            path: O::PATH,
            permission: O::PERMISSION,
            further_permission: O::FURTHER_PERMISSION,
            retry: O::RETRY,
            mcp: O::MCP,
            status: O::Answer::STATUS,
            path_names: O::Path::NAMES,
            documentation: O::DOCUMENTATION,
            describe: describe::<O>,
        }
    }

    /// Subject of the operation: its name up to the dot.
    #[must_use]
    pub fn tag(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    /// One line for people, without a full stop.
    #[must_use]
    pub fn summary(&self) -> String {
        let lines = self.documentation.iter().take_while(|line| !line.trim().is_empty());
        let text = lines.map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
    }

    /// More about it, in Markdown; empty where the summary is enough.
    #[must_use]
    pub fn description(&self) -> String {
        let lines = self.documentation.iter().skip_while(|line| !line.trim().is_empty());
        lines.map(|line| line.trim()).collect::<Vec<_>>().join("\n").trim().to_owned()
    }

    /// It as an OpenAPI operation; what it refers to is added to `schemas`.
    #[must_use]
    pub fn describe(&self, schemas: &mut Schemas) -> Value {
        (self.describe)(self, schemas)
    }
}

fn describe<O: Operation>(row: &Row, schemas: &mut Schemas) -> Value {
    let mut parameters = O::Path::describe();
    parameters.extend(query_parameters::<O::Query>(schemas));
    let mut responses = O::Answer::describe(&row.summary(), schemas);
    let problem = json!({
        "description": "Description of the failure (RFC 9457)",
        "content": { "application/problem+json": { "schema": schemas.reference::<Problem>() } },
    });
    responses.insert("default".to_owned(), problem);
    with_headers(&mut responses, &[header::REQUEST_ID], schemas);
    let mut operation = json!({
        "operationId": row.name.replace('.', "_"),
        "tags": [row.tag()],
        "summary": row.summary(),
        "parameters": parameters,
        "responses": responses,
        "x-operation": row.name,
        "x-permission": row.permission.as_str(),
        "x-retry-safe": row.retry == Retry::Safe,
        "x-mcp": row.mcp == Mcp::Offered,
    });
    if let Some(further) = row.further_permission {
        operation["x-further-permission"] = further.as_str().into();
    }
    let description = row.description();
    if !description.is_empty() {
        operation["description"] = description.into();
    }
    if let Some(body) = O::Body::describe(schemas) {
        operation["requestBody"] = body;
    }
    operation
}
