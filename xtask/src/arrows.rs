//! Who may depend on whom.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::architecture::Sections;
use crate::run;

/// Checks every crate of the workspace against the section `arrows`. Tests may depend on what they like.
pub(crate) fn check(architecture: &Sections) -> Result<()> {
    let mut cargo = run::cargo(Duration::from_secs(120));
    let text = run::output(cargo.args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("reading cargo's metadata")?;
    let allowed = architecture.get("arrows").context("architecture.toml has no section [arrows]")?;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().context("cargo's metadata has no packages")? {
        let name = short(package["name"].as_str().unwrap_or_default());
        let Some(rule) = allowed.get(name).and_then(Value::as_array) else {
            wrong.push(format!("{name} is not in architecture.toml"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Crates of this workspace are the ones with a path.
            if dependency["path"].is_null() || dependency["kind"] == "dev" {
                continue;
            }
            let to = short(dependency["name"].as_str().unwrap_or_default());
            if !rule.iter().any(|allowed| allowed == to || allowed == "*") {
                wrong.push(format!("{name} → {to} is not allowed"));
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("arrows against architecture.toml:\n  {}", wrong.join("\n  "))
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("microvm-").unwrap_or(name)
}
