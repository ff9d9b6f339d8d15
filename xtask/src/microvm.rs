//! Calls of the `microvm` program, as a user would make them. The only place that knows its words.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{host, run};

/// The image every example uses.
pub(crate) const IMAGE: &str = "debian-python";

/// The kernel that needs no building.
pub(crate) const KERNEL: &str = "distribution";

/// The kernel that is built from source.
pub(crate) const BUILT_KERNEL: &str = "built";

/// Tells the build where the agent is that goes into the program.
pub(crate) const AGENT_VARIABLE: &str = "MICROVM_AGENT_BINARY";

/// Builds the program in release with the agent inside; returns its path.
pub(crate) fn build(agent: &Path) -> Result<PathBuf> {
    let mut cargo = run::cargo(Duration::from_secs(40 * 60));
    run::run(
        cargo.args(["build", "--locked", "--release", "--package", "microvm-cli"]).env(AGENT_VARIABLE, agent),
    )?;
    Ok(path())
}

/// Where [`build`] puts the program.
pub(crate) fn path() -> PathBuf {
    host::target().join("release/microvm")
}

/// A call with arguments.
pub(crate) fn call(limit: Duration, arguments: &[&str]) -> Command {
    let mut command = run::program(&path().to_string_lossy(), limit);
    command.args(arguments);
    command
}

/// Whether a list (`image ls`, `kernel ls`) has a thing of this name.
fn has(list: &[&str], name: &str) -> Result<bool> {
    let mut arguments = list.to_vec();
    arguments.extend(["--output", "json"]);
    let text = run::output(&mut call(Duration::from_secs(60), &arguments))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    Ok(mentions(&value, name))
}

/// Whether a name stands in a field `name` or a list `names` anywhere in an answer.
fn mentions(value: &serde_json::Value, wanted: &str) -> bool {
    match value {
        serde_json::Value::Array(items) => items.iter().any(|item| mentions(item, wanted)),
        serde_json::Value::Object(fields) => fields.iter().any(|(key, field)| match (key.as_str(), field) {
            ("name", serde_json::Value::String(name)) => name == wanted,
            ("names", serde_json::Value::Array(names)) => names.iter().any(|name| name == wanted),
            _ => mentions(field, wanted),
        }),
        _ => false,
    }
}

/// Puts the distribution's kernel there if it is missing.
pub(crate) fn provide_kernel() -> Result<()> {
    if has(&["kernel", "ls"], KERNEL)? {
        eprintln!("  it is there");
        return Ok(());
    }
    run::run(&mut call(Duration::from_secs(10 * 60), &["kernel", "build", "--distribution"]))
}

/// Builds the fast kernel if it is missing or an older version of this program built it.
pub(crate) fn provide_built_kernel() -> Result<()> {
    let kernels = run::output(&mut call(Duration::from_secs(60), &["kernel", "ls", "--output", "json"]))?;
    if is_current(&serde_json::from_str(&kernels)?) {
        eprintln!("  it is there");
        return Ok(());
    }
    run::run(&mut call(Duration::from_secs(25 * 60), &["kernel", "build"]))
}

/// Whether a list of kernels has the built one, as this version builds it.
fn is_current(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Array(items) => items.iter().any(is_current),
        serde_json::Value::Object(fields) if fields.get("name").is_some_and(|name| name == BUILT_KERNEL) => {
            fields.get("outdated") == Some(&serde_json::Value::Bool(false))
        }
        serde_json::Value::Object(fields) => fields.values().any(is_current),
        _ => false,
    }
}

/// Digest of the default image, without `sha256:`.
pub(crate) fn image_digest() -> Result<String> {
    let arguments = ["image", "inspect", IMAGE, "--output", "json"];
    let text = run::output(&mut call(Duration::from_secs(60), &arguments))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let digest = value["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    Ok(digest.context("the image has no digest")?.to_owned())
}

/// Builds the default image if it is missing.
pub(crate) fn provide_image() -> Result<()> {
    if has(&["image", "ls"], IMAGE)? {
        eprintln!("  it is there");
        return Ok(());
    }
    run::run(&mut call(Duration::from_secs(20 * 60), &["image", "build", IMAGE]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_an_older_version_is_not_current() {
        let list = |name: &str, outdated: bool| serde_json::json!({"kernels": [{"name": name, "outdated": outdated}]});
        assert!(is_current(&list(BUILT_KERNEL, false)));
        assert!(!is_current(&list(BUILT_KERNEL, true)));
        assert!(!is_current(&list("mine", false)));
    }

    #[test]
    fn names_are_found_wherever_the_list_has_them() {
        let list = serde_json::json!({"images": [{"names": ["a", "b"], "source": {"name": "c"}}]});
        assert!(mentions(&list, "b") && mentions(&list, "c"));
        assert!(!mentions(&list, "images") && !mentions(&serde_json::json!([]), "a"));
        assert!(!mentions(&serde_json::json!([{"digest": "a"}]), "a"));
    }
}
