//! The documents of an archive: image layout, index, manifest and configuration of OCI, and the list of `docker save`.

use std::collections::BTreeMap;

use microvm_ports::storage::{ImageConfig, ImageInfo};
use serde::Serialize;
use serde_json::json;

use super::Blob;
use crate::source::{EXPORTED_BY, architecture};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Tag of an image in an index.
const TAG: &str = "org.opencontainers.image.ref.name";
/// Whole name of an image in an index, as containerd and docker read it.
const NAME: &str = "io.containerd.image.name";

/// The documents, as they are written.
pub(super) struct Documents {
    pub(super) layout: Vec<u8>,
    pub(super) index: Vec<u8>,
    pub(super) legacy: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
}

impl Documents {
    pub(super) fn new(info: &ImageInfo, name: Option<&str>, layer: &Blob) -> Self {
        let config = bytes(&configuration(info, layer));
        let config_blob = Blob::of(&config);
        let descriptor = |kind: &str, blob: &Blob| json!({ "mediaType": kind, "digest": format!("sha256:{}", blob.sha256), "size": blob.size });
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config_blob),
            "layers": [descriptor(LAYER, layer)],
        }));
        let named = name.and_then(repository);
        let mut entry = descriptor(MANIFEST, &Blob::of(&manifest));
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        if let Some((repository, tag)) = &named {
            entry["annotations"] = json!({ TAG: tag });
            // The whole name, with the registry that is meant without a host.
            if let Ok(whole) = format!("{repository}:{tag}").parse::<oci_spec::distribution::Reference>() {
                entry["annotations"][NAME] = json!(whole.whole());
            }
        }
        let index = bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }));
        let tags: Vec<String> = named.iter().map(|(repository, tag)| format!("{repository}:{tag}")).collect();
        let legacy = bytes(&json!([{
            "Config": config_blob.path(),
            "RepoTags": tags,
            "Layers": [layer.path()],
        }]));
        Self { layout: bytes(&json!({ "imageLayoutVersion": "1.0.0" })), index, legacy, manifest, config }
    }
}

fn bytes(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Settings of programs as OCI has them; what is not said is left out.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Run<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    working_dir: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cmd: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

fn configuration(info: &ImageInfo, layer: &Blob) -> serde_json::Value {
    let ImageConfig { environment, user, working_directory, entrypoint, command, labels } = &info.config;
    let run = Run {
        env: environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        user,
        working_dir: working_directory,
        entrypoint,
        cmd: command,
        labels,
    };
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.sha256)] },
        "history": [{ "created_by": EXPORTED_BY }],
    })
}

/// Repository and tag for a name of ours; `None` where docker takes no such name.
fn repository(name: &str) -> Option<(&str, &str)> {
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    // Between letters and digits stand a point, one or two underscores, or dashes.
    let parted = repository
        .split(plain)
        .filter(|between| !between.is_empty())
        .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'));
    let fits = parted && repository.starts_with(plain) && repository.ends_with(plain);
    // Docker takes that for the id of an image.
    let is_id = repository.len() == 64 && repository.bytes().all(|byte| byte.is_ascii_hexdigit());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let tag_fits = !tag.is_empty() && tag.bytes().all(allowed) && !tag.starts_with(['.', '-']);
    (fits && !is_id && tag_fits).then_some((repository, tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_docker_takes() {
        for (name, expected) in [
            ("debian-python", Some(("debian-python", "latest"))),
            ("python:3.12-slim", Some(("python", "3.12-slim"))),
            ("App", None),
            ("a..b", None),
            ("a-", None),
            ("a:b:c", None),
            ("a:", None),
            ("sha256", Some(("sha256", "latest"))),
            ("a__b", Some(("a__b", "latest"))),
            ("a--b---c.d_e", Some(("a--b---c.d_e", "latest"))),
            ("a___b", None),
            ("a._b", None),
            ("a-_b", None),
            ("_a", None),
            ("", None),
            (&"0123456789abcdef".repeat(4), None),
            (&"0123456789abcdeg".repeat(4), Some((&*"0123456789abcdeg".repeat(4), "latest"))),
        ] {
            assert_eq!(repository(name), expected, "{name}");
        }
    }
}
