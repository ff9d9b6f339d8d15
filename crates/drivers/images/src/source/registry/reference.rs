//! Names of images in registries, as the field writes them: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.

use microvm_durable::error::bad_input;
use microvm_durable::files::is_sha256;
use microvm_ports::StorageError;

/// Longest reference, in bytes. (Registries allow 255 for the path alone.)
const LENGTH_MAX: usize = 512;

/// A reference, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Host and, if it is said, port of the server to connect to.
    pub(super) registry: String,
    /// Path of the image in the registry.
    pub(super) path: String,
    /// The digest if there is one, else the tag.
    pub(super) version: String,
}

impl Reference {
    /// Takes a reference apart. Without a version it is `latest`; without a host it is one of the registry that everybody
    /// means then, and that the library knows.
    pub(super) fn parse(text: &str) -> Result<Self, StorageError> {
        let refused = |reason: &str| bad_input(format!("the reference `{}`", text.escape_debug()), reason);
        if text.len() > LENGTH_MAX {
            return Err(refused("it is longer than 512 bytes"));
        }
        let parsed = text.parse::<oci_spec::distribution::Reference>();
        let parsed = parsed.map_err(|error| refused(&error.to_string()))?;
        let digest = parsed.digest();
        if !digest.is_none_or(|digest| digest.strip_prefix("sha256:").is_some_and(is_sha256)) {
            return Err(refused("its digest is no `sha256:` with 64 lower-case hexadecimal digits"));
        }
        let version = digest.or(parsed.tag()).unwrap_or("latest").to_owned();
        let registry = parsed.resolve_registry().to_owned();
        Ok(Self { registry, path: parsed.repository().to_owned(), version })
    }
}

/// Name under which other programs keep logins for the registry of a reference; `None` if it is no reference. That of a
/// registry which is called by another name than its host's is the address of its first version.
#[must_use]
pub fn login_server(reference: &str) -> Option<String> {
    let parsed = reference.parse::<oci_spec::distribution::Reference>().ok()?;
    let host = parsed.resolve_registry();
    Some(if host == parsed.registry() { host.to_owned() } else { format!("https://{host}/v1/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_looked_for_where_others_keep_them() {
        assert_eq!(login_server("registry.test:5000/a/b:1").as_deref(), Some("registry.test:5000"));
        // With and without the name that everybody leaves out.
        let usual = login_server("debian:12").unwrap();
        let name = "debian".parse::<oci_spec::distribution::Reference>().unwrap().registry().to_owned();
        assert!(usual.starts_with("https://") && usual.ends_with("/v1/"), "{usual}");
        assert_eq!(login_server(&format!("{name}/me/private")), Some(usual));
        assert_eq!(login_server("No Reference"), None);
    }

    #[test]
    fn references_are_taken_apart_as_everywhere() {
        let hash = "sha256:".to_owned() + &"0a".repeat(32);
        let by_digest = format!("registry.test/a/b:v1@{hash}");
        for (text, registry, path, version) in [
            ("localhost/x", "localhost", "x", "latest"),
            ("127.0.0.1:5000/tiny:1", "127.0.0.1:5000", "tiny", "1"),
            ("a.test:5000/a/b__c/d--e.f:T_1", "a.test:5000", "a/b__c/d--e.f", "T_1"),
            (&by_digest, "registry.test", "a/b", &hash),
        ] {
            let found = Reference::parse(text).unwrap();
            assert_eq!((found.registry.as_str(), found.path.as_str()), (registry, path), "{text}");
            assert_eq!(found.version, version, "{text}");
        }
        let short = Reference::parse("debian").unwrap();
        assert_eq!((short.path.as_str(), short.version.as_str()), ("library/debian", "latest"));
        assert_eq!(Reference::parse("grafana/loki:3").unwrap().registry, short.registry);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(600);
        for text in [
            "",
            "/",
            "a//b",
            "../etc",
            "a/..",
            "host.test/../x",
            "a:",
            "a@sha256:12",
            "a@md5:00",
            "a b",
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
        let upper = format!("a@sha256:{}", "0A".repeat(32));
        assert!(Reference::parse(&upper).is_err());
    }
}
