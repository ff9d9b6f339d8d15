//! The digest of an image: over its files and how programs run in them.

use std::collections::BTreeMap;

use microvm_durable::files::sha256;
use microvm_ports::storage::ImageConfig;
use serde::Serialize;

use super::ImageManifest;

/// First line of what is hashed.
const DOMAIN: &str = "microvm image 1";

/// Form of a configuration that is hashed. A field that is added must be left out while it is empty, or the digests of all images
/// of older versions change.
#[derive(Serialize)]
struct Hashed<'a> {
    environment: &'a BTreeMap<String, String>,
    user: &'a str,
    working_directory: &'a str,
    entrypoint: &'a [String],
    command: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

/// The digest (hexadecimal) of an image with these files and this configuration.
pub(super) fn identity(files: &str, config: &ImageConfig) -> String {
    let ImageConfig { environment, user, working_directory, entrypoint, command, labels } = config;
    let hashed = Hashed { environment, user, working_directory, entrypoint, command, labels };
    let text = serde_json::to_string(&hashed).expect("strings in maps and lists are valid JSON");
    sha256(format!("{DOMAIN}\n{files}\n{text}").as_bytes())
}

impl ImageManifest {
    /// True if this is the manifest of the image with this digest: the one of today, or the digest of the files as older
    /// versions had it.
    pub(super) fn belongs_to(&self, digest: &str) -> bool {
        self.sha256 == digest || identity(&self.sha256, &self.config) == digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_configuration_counts_and_the_form_is_fixed() {
        let text = |value: &str| value.to_owned();
        let configs = [
            ImageConfig::default(),
            ImageConfig { user: text("1000"), ..ImageConfig::default() },
            ImageConfig { working_directory: text("1000"), ..ImageConfig::default() },
            ImageConfig { entrypoint: vec![text("1000")], ..ImageConfig::default() },
            ImageConfig { command: vec![text("1000")], ..ImageConfig::default() },
            ImageConfig { command: vec![text("10"), text("00")], ..ImageConfig::default() },
            ImageConfig { environment: [(text("1000"), text(""))].into(), ..ImageConfig::default() },
            ImageConfig { environment: [(text(""), text("1000"))].into(), ..ImageConfig::default() },
            ImageConfig { labels: [(text("1000"), text(""))].into(), ..ImageConfig::default() },
        ];
        let files = sha256(b"files");
        let mut digests: Vec<String> = configs.iter().map(|config| identity(&files, config)).collect();
        digests.push(identity(&sha256(b"others"), &configs[0]));
        digests.push(files.clone());
        let count = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), count);
        // Stored roots depend on it.
        assert_eq!(
            identity(&files, &configs[0]),
            "3f13de40090a71e8f07e93604b68702b43fe6891056317c02f21f52e1ed9db96"
        );
    }
}
