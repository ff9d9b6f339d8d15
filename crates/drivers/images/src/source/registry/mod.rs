//! Downloads an image of a registry into an OCI layout folder; from there it goes the way of every layout.
//!
//! ```text
//!  reference ─▶ client (reach: where it may lead; patience: how long) ─▶ manifest ─▶ pieces ─▶ layout folder
//! ```
//!
//! A registry is hostile: every answer has a limit of size and time, every piece is held against its digest, and an
//! address that it names is checked before it is asked.

mod client;
mod patience;
mod piece;
mod reach;
mod reference;
#[cfg(test)]
mod tests;
mod token;

use std::collections::BTreeSet;
use std::time::Duration;

use camino::Utf8Path;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{make_directory, require_space, sha256};
use microvm_ports::storage::RegistryLogin;
use microvm_ports::{Progress, StorageError};

use self::client::Registry;
use self::patience::Patience;
use self::reference::Reference;
use super::oci::{self, Descriptor, LAYERS_MAX, SMALL_MAX};

pub use self::reference::login_server;

/// Media types of indexes and manifests, of OCI and of docker.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Indexes inside indexes that are followed, and the manifest.
const DOCUMENTS_MAX: usize = 4;

/// Image, and the registry it comes from.
pub(crate) struct From<'a> {
    pub(crate) reference: &'a str,
    pub(crate) plain_http: bool,
    /// PEM.
    pub(crate) authorities: Option<&'a str>,
    pub(crate) login: Option<&'a RegistryLogin>,
}

/// Downloads the image for this machine. Dropping the future ends the download; the caller's work directory goes with it.
pub(crate) async fn pull(
    from: From<'_>,
    layout: &Utf8Path,
    bytes_max: u64,
    progress: &Progress,
) -> Result<(), StorageError> {
    pull_within(from, Patience::default(), layout, bytes_max, progress).await
}

/// Bounds the whole pull: each answer may be slow, but not all of them for ever.
async fn pull_within(
    from: From<'_>,
    patience: Patience,
    layout: &Utf8Path,
    bytes_max: u64,
    progress: &Progress,
) -> Result<(), StorageError> {
    let pull = pull_with(from, patience, layout, bytes_max, progress);
    tokio::time::timeout(patience.image, pull)
        .await
        .unwrap_or_else(|_| Err(late("the image", patience.image)))
}

fn late(what: &str, limit: Duration) -> StorageError {
    StorageError::Registry(format!("the registry did not send {what} within {limit:?}"))
}

async fn pull_with(
    From { reference, plain_http, authorities, login }: From<'_>,
    patience: Patience,
    layout: &Utf8Path,
    bytes_max: u64,
    progress: &Progress,
) -> Result<(), StorageError> {
    let image = Reference::parse(reference)?;
    if plain_http && !is_loopback(&image.registry) {
        return Err(bad_input(
            format!("the registry `{}`", image.registry),
            "plain HTTP is only for registries on this host",
        ));
    }
    let registry = Registry::new(&image, plain_http, authorities, login, patience).await?;
    let blobs = layout.join("blobs/sha256");
    make_directory(&blobs, 0o700)?;
    progress.step(format!("asking for {reference}"));
    let manifest = tokio::time::timeout(patience.manifest, manifest(&registry, &image, reference, layout))
        .await
        .unwrap_or_else(|_| Err(late("a manifest", patience.manifest)))?;
    let Some(config) = &manifest.config else {
        return Err(bad_input(reference, "its manifest has no configuration"));
    };
    if config.size > SMALL_MAX {
        return Err(bad_input(reference, "its configuration is larger than 4 MiB"));
    }
    let layers = manifest.layers.as_deref().unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        let found = layers.len();
        return Err(bad_input(reference, format!("it has {found} layers; at most {LAYERS_MAX} are taken")));
    }
    // Equal layers are one piece.
    let mut seen = BTreeSet::new();
    let wanted: Vec<&Descriptor> =
        std::iter::once(config).chain(layers).filter(|piece| seen.insert(piece.digest.clone())).collect();
    let total = wanted.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.size));
    if total > bytes_max {
        return Err(bad_input(reference, format!("it has {total} bytes; at most {bytes_max} are taken")));
    }
    require_space(layout, total, "downloading the image")?;
    let mut done = 0;
    for wanted in wanted {
        let path = layout.join(oci::blob(reference, &wanted.digest)?);
        piece::download(&registry, wanted, &path, &mut |have| {
            progress.advance("downloading", done + have, Some(total));
        })
        .await?;
        done += wanted.size;
    }
    Ok(())
}

/// Fetches the manifest for this machine, and writes an index that holds it alone.
async fn manifest(
    registry: &Registry,
    image: &Reference,
    reference: &str,
    layout: &Utf8Path,
) -> Result<oci::Document, StorageError> {
    let mut version = image.version.clone();
    for _ in 0..DOCUMENTS_MAX {
        let answer = registry.document(&format!("manifests/{version}"), ACCEPTED, SMALL_MAX).await?;
        let found = format!("sha256:{}", sha256(&answer.bytes));
        let said = answer.digest.filter(|digest| digest.starts_with("sha256:"));
        let wanted = if version.starts_with("sha256:") { Some(&version) } else { said.as_ref() };
        if let Some(wanted) = wanted.filter(|wanted| **wanted != found) {
            return Err(StorageError::Registry(format!(
                "the manifest of {reference} should have the digest {}, but has {found}",
                wanted.escape_debug()
            )));
        }
        let document = oci::parse(reference, &answer.bytes)?;
        if let Some(manifests) = &document.manifests {
            let chosen = oci::choose(reference, manifests)?;
            oci::blob(reference, &chosen.digest)?;
            version = chosen.digest.clone();
            continue;
        }
        write(&layout.join(oci::blob(reference, &found)?), &answer.bytes).await?;
        let size = answer.bytes.len();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": found, "size": size}]});
        write(&layout.join("index.json"), index.to_string().as_bytes()).await?;
        return Ok(document);
    }
    Err(bad_input(reference, "its indexes are nested too deeply"))
}

async fn write(path: &Utf8Path, bytes: &[u8]) -> Result<(), StorageError> {
    tokio::fs::write(path, bytes).await.map_err(io_error("writing", path))
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
