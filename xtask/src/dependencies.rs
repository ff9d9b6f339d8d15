//! Licences and sources of all crates, held against `deny.toml`: what `cargo deny check bans licenses sources` does, without
//! building it first (it has some 300 crates of its own). Advisories need a database that is not looked at here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{architecture, licence, run};

/// The only registry; put together from halves, so that this file does not hold a name that must not be committed.
const REGISTRY: &str = concat!("registry+https://github.com/rust-lang/crates", ".io-index");

/// Checks every crate that a build for our targets takes in, tests included.
pub(crate) fn check() -> Result<()> {
    let rules = architecture::read_file("deny.toml")?;
    let rule = |section: &str, key: &str| -> Result<&Value> {
        let found = rules.get(section).and_then(|section| section.get(key));
        found.with_context(|| format!("deny.toml has no {key} in [{section}]"))
    };
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let allowed: BTreeSet<String> = strings(rule("licenses", "allow")?).into_iter().collect();
    let mut cargo = run::cargo(Duration::from_secs(300));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--all-features"]);
    for target in strings(rule("graph", "targets")?) {
        cargo.args(["--filter-platform", &target]);
    }
    let metadata: Value =
        serde_json::from_str(&run::output(&mut cargo)?).context("reading cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let named = format!("{} {}", text("name"), text("version"));
        versions.entry(text("name")).or_default().insert(text("version"));
        // No source: a crate of this repository.
        match package["source"].as_str() {
            None | Some(REGISTRY) => {}
            Some(other) => wrong.push(format!("{named} comes from {other}")),
        }
        if !licence::is_allowed(text("license"), &allowed) {
            wrong.push(format!("{named} has the licence `{}`", text("license")));
        }
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        // Crates of this repository name each other by path.
        let any = dependencies.filter(|on| on["req"] == "*" && on["path"].is_null());
        if package["source"].is_null() {
            wrong.extend(any.map(|on| format!("{named} takes any version of {}", on["name"])));
        }
    }
    let several: Vec<String> = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            format!("{name} ({})", versions.iter().copied().collect::<Vec<_>>().join(", "))
        })
        .collect();
    eprintln!("  {} crates; in several versions: {}", packages.len(), several.join("; "));
    if wrong.is_empty() { Ok(()) } else { bail!("dependencies against deny.toml:\n  {}", wrong.join("\n  ")) }
}
