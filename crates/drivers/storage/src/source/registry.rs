//! Downloads an image of a registry into an OCI layout folder; from there it goes the way of every layout.

use std::collections::BTreeSet;
use std::time::Duration;

use camino::Utf8Path;
use futures::StreamExt;
use microvm_ports::{Progress, StorageError};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::AsyncWriteExt;

use super::oci::{self, Descriptor, SMALL_MAX};
use crate::base::error::{bad_input, io_error};
use crate::base::files::{make_directory, require_space, sha256};

const ACCEPTED: [&str; 4] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];
/// A registry that is silent for so long is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// What is asked of whom.
pub(crate) struct From<'a> {
    pub(crate) reference: &'a str,
    pub(crate) plain_http: bool,
    /// PEM.
    pub(crate) authorities: Option<&'a str>,
}

/// Downloads the image for this machine. Dropping the future ends the download; the caller's work directory goes with it.
pub(crate) async fn pull(
    From { reference, plain_http, authorities }: From<'_>,
    layout: &Utf8Path,
    bytes_max: u64,
    progress: &Progress,
) -> Result<(), StorageError> {
    let image: Reference = reference.parse().map_err(|error| {
        bad_input(format!("the reference `{}`", reference.escape_debug()), format!("{error}"))
    })?;
    if plain_http && !is_loopback(image.resolve_registry()) {
        return Err(bad_input(
            format!("the registry `{}`", image.resolve_registry()),
            "plain HTTP is only for registries on this host",
        ));
    }
    // Two parts of one program may both do this; the second finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_from(ClientConfig {
        protocol: if plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
        read_timeout: Some(READ_TIMEOUT),
        connect_timeout: Some(CONNECT_TIMEOUT),
        extra_root_certificates: authorities.map(trusted).transpose()?.into_iter().collect(),
        ..ClientConfig::default()
    })
    .map_err(refused)?;
    let blobs = layout.join("blobs/sha256");
    make_directory(&blobs, 0o700)?;
    progress.step(format!("asking for {reference}"));
    let manifest = manifest(&client, &image, reference, &blobs).await?;
    let Some(config) = &manifest.config else {
        return Err(bad_input(reference, "its manifest has no configuration"));
    };
    let layers = manifest.layers.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    let wanted: Vec<&Descriptor> =
        std::iter::once(config).chain(layers).filter(|piece| seen.insert(piece.digest.clone())).collect();
    let total = wanted.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.size));
    if total > bytes_max {
        return Err(bad_input(reference, format!("it has {total} bytes; at most {bytes_max} are taken")));
    }
    require_space(layout, total, "downloading the image")?;
    let mut done = 0;
    for piece in wanted {
        download(&client, &image, reference, piece, layout, &mut |count| {
            done += count;
            progress.advance("downloading", done, Some(total));
        })
        .await?;
    }
    Ok(())
}

/// Authorities as the client takes them. One that cannot be read would trust nobody, and say so only later.
fn trusted(authorities: &str) -> Result<Certificate, StorageError> {
    let refused = |reason: String| bad_input("the file of trusted authorities", reason);
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|error| refused(format!("it is not PEM: {error}")))?;
        let mut one = rustls::RootCertStore::empty();
        one.add(certificate).map_err(|error| refused(format!("it holds no usable certificate: {error}")))?;
        count += 1;
    }
    if count == 0 {
        return Err(refused("it holds no certificate: `BEGIN CERTIFICATE` is missing".into()));
    }
    Ok(Certificate { encoding: CertificateEncoding::Pem, data: authorities.as_bytes().to_vec() })
}

/// Fetches the manifest for this machine, and writes an index that holds it alone.
async fn manifest(
    client: &Client,
    image: &Reference,
    reference: &str,
    blobs: &Utf8Path,
) -> Result<oci::Document, StorageError> {
    let mut from = image.clone();
    for _ in 0..4 {
        let (bytes, digest) =
            client.pull_manifest_raw(&from, &RegistryAuth::Anonymous, &ACCEPTED).await.map_err(refused)?;
        let found = format!("sha256:{}", sha256(&bytes));
        if bytes.len() as u64 > SMALL_MAX || (digest.starts_with("sha256:") && digest != found) {
            return Err(StorageError::Registry(format!(
                "the manifest of {reference} should have the digest {digest}, but has {found}"
            )));
        }
        let document = oci::parse(reference, &bytes)?;
        if let Some(manifests) = &document.manifests {
            let chosen = oci::choose(reference, manifests)?;
            oci::blob(reference, &chosen.digest)?;
            from = image.clone_with_digest(chosen.digest.clone());
            continue;
        }
        write(&blobs.join(&found["sha256:".len()..]), &bytes).await?;
        let index =
            serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": found, "size": bytes.len()}]});
        let layout = blobs.parent().and_then(Utf8Path::parent).unwrap_or(blobs);
        write(&layout.join("index.json"), index.to_string().as_bytes()).await?;
        return Ok(document);
    }
    Err(bad_input(reference, "its indexes are nested too deeply"))
}

/// Downloads one piece. Its digest is checked when the layout is read; here only its length, so that a registry cannot fill
/// the disk.
async fn download(
    client: &Client,
    image: &Reference,
    reference: &str,
    piece: &Descriptor,
    layout: &Utf8Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), StorageError> {
    let path = layout.join(oci::blob(reference, &piece.digest)?);
    let size =
        i64::try_from(piece.size).map_err(|_| bad_input(reference, "a piece of it has an absurd size"))?;
    let descriptor = OciDescriptor {
        digest: piece.digest.clone(),
        size,
        media_type: piece.media_type.clone(),
        ..OciDescriptor::default()
    };
    let mut stream = client.pull_blob_stream(image, &descriptor).await.map_err(refused)?;
    let mut file = tokio::fs::File::create(&path).await.map_err(io_error("creating", &path))?;
    let mut length = 0;
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| {
            StorageError::Registry(format!("the download of {} broke off: {error}", piece.digest))
        })?;
        length += part.len() as u64;
        if length > piece.size {
            return Err(StorageError::Registry(format!(
                "the piece {} is longer than the {} bytes the manifest says",
                piece.digest, piece.size
            )));
        }
        file.write_all(&part).await.map_err(io_error("writing", &path))?;
        progress(part.len() as u64);
    }
    file.flush().await.map_err(io_error("writing", &path))
}

async fn write(path: &Utf8Path, bytes: &[u8]) -> Result<(), StorageError> {
    tokio::fs::write(path, bytes).await.map_err(io_error("writing", path))
}

fn refused(error: oci_client::errors::OciDistributionError) -> StorageError {
    // The whole chain: "error sending request" alone explains nothing.
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    let mut untrusted = false;
    while let Some(cause) = source {
        untrusted |= is_certificate_refused(cause);
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    if untrusted {
        text.push_str(
            "; if the registry's authority is one of your own, name its certificate with --ca-file",
        );
    }
    StorageError::Registry(text.chars().filter(|c| !c.is_control()).take(1000).collect())
}

/// Whether this is, or holds, the refusal of a certificate.
fn is_certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let refused = |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_));
    error.downcast_ref::<rustls::Error>().is_some_and(refused)
        || inner.is_some_and(|inner| is_certificate_refused(inner))
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_host_only() {
        for registry in ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "localhost"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["example.com", "10.0.0.1:5000", "localhost.example.com:80"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
