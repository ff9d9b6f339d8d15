//! Names of images in registries, as the field writes them: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.

use microvm_ports::StorageError;

use crate::base::error::bad_input;
use crate::base::files::is_sha256;

/// Longest reference, in bytes. (Registries allow 255 for the path alone.)
const LENGTH_MAX: usize = 512;

/// A reference, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Host and, if it is said, port.
    pub(super) registry: String,
    /// Path of the image in the registry.
    pub(super) path: String,
    /// The digest if there is one, else the tag.
    pub(super) version: String,
}

impl Reference {
    /// Takes a reference apart. Without a host it is one of Docker Hub, without a version it is `latest`.
    pub(super) fn parse(text: &str) -> Result<Self, StorageError> {
        let refused = |reason: &str| bad_input(format!("the reference `{}`", text.escape_debug()), reason);
        if text.is_empty() || text.len() > LENGTH_MAX {
            return Err(refused("it is empty or longer than 512 bytes"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A colon behind the last slash begins a tag, one before it a port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host == "localhost" || host.contains(['.', ':', '[']) => {
                (host, path.to_owned())
            }
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        if !path.split('/').all(is_component) {
            return Err(refused(
                "its path may hold lower-case letters, digits and single separators (`.`, `_`, `-`)",
            ));
        }
        if !is_host(registry) {
            return Err(refused("its registry is no host name or address, with or without a port"));
        }
        if !tag.is_none_or(is_tag) {
            return Err(refused("its tag may hold 128 letters, digits, `_`, `.` and `-`"));
        }
        if !digest.is_none_or(|digest| digest.strip_prefix("sha256:").is_some_and(is_sha256)) {
            return Err(refused("its digest is no `sha256:` with 64 hexadecimal digits"));
        }
        let version = digest.or(tag).unwrap_or("latest").to_owned();
        Ok(Self { registry: registry.to_owned(), path, version })
    }

    /// Host and port to connect to.
    pub(super) fn server(&self) -> &str {
        // The name in references of Docker Hub serves web pages, not images.
        match self.registry.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        }
    }
}

/// `[a-z0-9]+` with single separators between: `.`, `_`, `__`, or any number of `-`.
fn is_component(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain);
    ends && part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(plain)
        && tag.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'-'))
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port)
        }
        None => registry.split_at(registry.find(':').unwrap_or(registry.len())),
    };
    let port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|p| p > 0));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    port && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_as_everywhere() {
        let hash = "sha256:".to_owned() + &"0a".repeat(32);
        let by_digest = format!("ghcr.io/a/b:v1@{hash}");
        for (text, registry, path, version) in [
            ("debian", "docker.io", "library/debian", "latest"),
            ("grafana/loki:3", "docker.io", "grafana/loki", "3"),
            ("localhost/x", "localhost", "x", "latest"),
            ("127.0.0.1:5000/tiny:1", "127.0.0.1:5000", "tiny", "1"),
            ("[::1]:5000/a/b__c/d--e.f:T_1", "[::1]:5000", "a/b__c/d--e.f", "T_1"),
            (&by_digest, "ghcr.io", "a/b", &hash),
        ] {
            let found = Reference::parse(text).unwrap();
            assert_eq!((found.registry.as_str(), found.path.as_str()), (registry, path), "{text}");
            assert_eq!(found.version, version, "{text}");
        }
        assert_eq!(Reference::parse("debian").unwrap().server(), "registry-1.docker.io");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(600);
        for text in [
            "",
            "/",
            "A/b",
            "a//b",
            "../etc",
            "a/..",
            "host.test/../x",
            "a:",
            "a@sha256:12",
            "a@md5:00",
            "a b",
            "host.test:99999/x",
            "host.test:/x",
            "[::g]/x",
            "us er@host.test/x",
            "a.b/x?y",
            "x\n",
            "a_-b",
            "-a.test/x",
            "a..test/x",
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
