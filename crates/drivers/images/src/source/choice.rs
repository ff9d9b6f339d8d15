//! Choice of one image among several: by tag, by platform, or none.

use std::collections::{BTreeMap, BTreeSet};

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use serde::Deserialize;

use super::oci::Descriptor;

/// Names shown in an error.
const SHOWN_MAX: usize = 20;
/// Tag of an image in an index (OCI image layout specification, "Annotations").
const TAG: &str = "org.opencontainers.image.ref.name";
/// Whole name of an image, as containerd and docker write it.
const NAME: &str = "io.containerd.image.name";
/// Annotation that buildx gives attestations, which it puts beside images.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// Platform of an image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

impl Platform {
    /// True if it is this machine's.
    pub(super) fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == architecture()
    }
}

/// This machine's architecture as OCI images have it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// True if a tag means the image with this name: `1.2` means `1.2`, `tool:1.2` and `registry/team/tool:1.2`.
pub(super) fn is_called(name: &str, tag: &str) -> bool {
    name.strip_suffix(tag).is_some_and(|before| before.is_empty() || before.ends_with([':', '/']))
}

/// The manifest of an index inside another, or of a registry: the first for this machine, or the only one that does not say.
pub(super) fn choose<'a>(what: &str, manifests: &'a [Descriptor]) -> Result<&'a Descriptor, StorageError> {
    let is_ours = |d: &&Descriptor| d.platform.as_ref().is_some_and(Platform::is_ours);
    let images: Vec<&Descriptor> = manifests.iter().filter(|d| is_image(d)).collect();
    match (images.iter().find(|d| is_ours(d)), &images[..]) {
        (Some(found), _) => Ok(found),
        (None, [only]) if only.platform.is_none() => Ok(only),
        _ => Err(none_fits(what, &images)),
    }
}

/// The manifest that a layout's own index has under a tag; without one there must be no doubt which is meant.
pub(super) fn choose_tagged<'a>(
    what: &str,
    manifests: &'a [Descriptor],
    tag: Option<&str>,
) -> Result<&'a Descriptor, StorageError> {
    let mut images: Vec<&Descriptor> = manifests.iter().filter(|d| is_image(d)).collect();
    if let Some(tag) = tag {
        let all = std::mem::take(&mut images);
        images = all.iter().copied().filter(|d| names(d).any(|name| is_called(name, tag))).collect();
        if images.is_empty() {
            return Err(no_tag(what, tag, all.into_iter().flat_map(names)));
        }
    }
    let fitting: Vec<&Descriptor> =
        images.iter().copied().filter(|d| d.platform.as_ref().is_none_or(Platform::is_ours)).collect();
    // Several names of one image leave no doubt.
    let digests: BTreeSet<&str> = fitting.iter().map(|d| d.digest.as_str()).collect();
    match (fitting.first(), digests.len()) {
        (Some(found), 1) => Ok(found),
        (None, _) => Err(none_fits(what, &images)),
        _ => Err(several(what, digests.len(), fitting.into_iter().flat_map(names))),
    }
}

/// Of several images, more than one of which may be meant.
pub(super) fn several<'a>(what: &str, count: usize, names: impl Iterator<Item = &'a str>) -> StorageError {
    let names: BTreeSet<&str> = names.collect();
    let first = names.iter().next().map(|name| last_tag(name).to_owned());
    let detail = match first {
        Some(first) => format!(
            "it holds {count} images: {}; say which one behind the path, as in `PATH:{first}`",
            list(&names)
        ),
        None => format!("it holds {count} images without names; save exactly one"),
    };
    bad_input(what, detail)
}

/// None of the images has this tag.
pub(super) fn no_tag<'a>(what: &str, tag: &str, names: impl Iterator<Item = &'a str>) -> StorageError {
    let names: BTreeSet<&str> = names.collect();
    let there = if names.is_empty() {
        "no image in it has a name".to_owned()
    } else {
        format!("it has {}", list(&names))
    };
    bad_input(what, format!("no image in it is called `{}`: {there}", tag.escape_debug()))
}

fn list(names: &BTreeSet<&str>) -> String {
    let shown: Vec<String> =
        names.iter().take(SHOWN_MAX).map(|name| format!("`{}`", name.escape_debug())).collect();
    let more = names.len() - shown.len();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// The tag of a whole name: what follows the colon behind the last slash.
fn last_tag(name: &str) -> &str {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split_once(':').map_or(last, |(_, tag)| tag)
}

fn none_fits(what: &str, images: &[&Descriptor]) -> StorageError {
    let offered: BTreeSet<String> = images
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .take(SHOWN_MAX)
        .collect();
    let offered = if offered.is_empty() {
        format!("{} images without a platform", images.len())
    } else {
        offered.into_iter().collect::<Vec<_>>().join(", ")
    };
    bad_input(what, format!("it has no single image for linux/{}; it offers {offered}", architecture()))
}

/// True if a descriptor is that of an image: attestations, signatures and other things lie beside them.
fn is_image(descriptor: &Descriptor) -> bool {
    // Tools that sign images put what they make beside them under such tags.
    let beside = [".sig", ".att", ".sbom"];
    !descriptor.annotations.contains_key(ATTESTATION)
        && descriptor.artifact_type.as_deref().unwrap_or_default().is_empty()
        && !names(descriptor)
            .any(|name| name.starts_with("sha256-") && beside.iter().any(|end| name.ends_with(end)))
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations: &BTreeMap<String, String> = &descriptor.annotations;
    // The whole name says more than the tag in it.
    let whole = annotations.get(NAME).filter(|name| !name.is_empty());
    let tag = annotations.get(TAG).filter(|tag| !tag.is_empty());
    let redundant = whole.zip(tag).is_some_and(|(whole, tag)| is_called(whole, tag));
    whole.into_iter().chain(tag.filter(|_| !redundant)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptors(list: serde_json::Value) -> Vec<Descriptor> {
        serde_json::from_value(list).unwrap()
    }

    fn ours() -> serde_json::Value {
        json!({"os": "linux", "architecture": architecture()})
    }

    #[test]
    fn a_tag_chooses_and_without_one_there_must_be_no_doubt() {
        let two = descriptors(json!([
            {"digest": "a", "size": 1, "platform": ours(), "annotations": {TAG: "v1"}},
            {"digest": "b", "size": 1, "platform": ours(), "annotations": {TAG: "v2", NAME: "registry.example/team/tool:v2"}},
            {"digest": "b", "size": 1, "platform": ours(), "annotations": {NAME: "registry.example/team/tool:latest"}},
        ]));
        let chosen =
            |tag| choose_tagged("x", &two, tag).map(|d| d.digest.clone()).map_err(|error| error.to_string());
        for (tag, digest) in [
            ("v1", "a"),
            ("v2", "b"),
            ("latest", "b"),
            ("tool:v2", "b"),
            ("registry.example/team/tool:latest", "b"),
        ] {
            assert_eq!(chosen(Some(tag)).unwrap(), digest, "{tag}");
        }
        for tag in ["2", "v", "", "team/tool"] {
            let error = chosen(Some(tag)).unwrap_err();
            assert!(error.contains("`v1`") && error.contains("`registry.example/team/tool:v2`"), "{error}");
        }
        let error = chosen(None).unwrap_err();
        assert!(error.contains("2 images") && error.contains("`v1`") && error.contains("PATH:"), "{error}");
        // Two tags of one image leave no doubt.
        assert_eq!(choose_tagged("x", &two[1..], None).unwrap().digest, "b");
    }

    #[test]
    fn other_platforms_attestations_and_signatures_are_passed_over() {
        let mixed = descriptors(json!([
            {"digest": "other", "size": 1, "platform": {"os": "linux", "architecture": "s390x"}},
            {"digest": "proof", "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": {ATTESTATION: "attestation-manifest"}},
            {"digest": "signature", "size": 1, "annotations": {TAG: "sha256-00.sig"}},
            {"digest": "list", "size": 1, "artifactType": "application/spdx+json"},
            {"digest": "image", "size": 1, "platform": ours()},
        ]));
        assert_eq!(choose_tagged("x", &mixed, None).unwrap().digest, "image");
        assert_eq!(choose("x", &mixed).unwrap().digest, "image");
        for refused in [choose_tagged("x", &mixed[..4], None), choose("x", &mixed[..4])] {
            assert!(refused.unwrap_err().to_string().contains("linux/s390x"));
        }
        let unsaid = descriptors(json!([{"digest": "a", "size": 1}, {"digest": "b", "size": 1}]));
        assert!(
            choose_tagged("x", &unsaid, None).unwrap_err().to_string().contains("2 images without names")
        );
        assert_eq!(choose_tagged("x", &unsaid[..1], None).unwrap().digest, "a");
    }
}
