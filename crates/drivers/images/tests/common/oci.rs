//! A tiny OCI layout with whiteouts, and what must come out of it.

use camino::Utf8Path;
use microvm_ports::ImageStore;
use microvm_ports::storage::ImageInfo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType};

use super::{Home, entry, extract, file};

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Puts a piece in; returns its descriptor.
pub(crate) fn piece(layout: &Utf8Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    std::fs::write(layout.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three layers: files, then whiteouts, then an opaque directory.
pub(crate) fn write_layout(layout: &Utf8Path) {
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut first = Builder::new(Vec::new());
    for name in ["etc/keep", "etc/gone", "opaque/old", "opaque/sub/old"] {
        file(&mut first, name, name.as_bytes());
    }
    let mut second = Builder::new(Vec::new());
    file(&mut second, "etc/.wh.gone", b"");
    file(&mut second, "etc/keep", b"changed");
    let mut third = Builder::new(Vec::new());
    file(&mut third, "opaque/new", b"new");
    file(&mut third, "opaque/.wh..wh..opq", b"");
    entry(&mut third, EntryType::Link, b"hard", b"etc/keep", b"");
    let layers: Vec<Vec<u8>> =
        [first, second, third].into_iter().map(|layer| layer.into_inner().unwrap()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin", "A=b=c"], "User": "nobody", "WorkingDir": "/etc", "Entrypoint": ["/e"], "Cmd": ["c"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>()},
    });
    let config = piece(layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| piece(layout, "application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers});
    let mut manifest =
        piece(layout, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    manifest["platform"] = json!({"architecture": "amd64", "os": "linux"});
    std::fs::write(
        layout.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
    )
    .unwrap();
}

/// Asserts that an image is that of the layout.
pub(crate) async fn check(home: &Home, info: &ImageInfo) {
    assert_eq!(info.config.environment["A"], "b=c");
    assert_eq!((info.config.user.as_str(), info.config.working_directory.as_str()), ("nobody", "/etc"));
    assert_eq!(
        (&info.config.entrypoint[..], &info.config.command[..]),
        (&["/e".to_owned()][..], &["c".to_owned()][..])
    );
    let resolved = home.storage.image(&info.digest).await.unwrap();
    let Some(tree) = extract(&resolved.path) else { return };
    let root = tree.path().join("root");
    assert_eq!(std::fs::read(root.join("etc/keep")).unwrap(), b"changed");
    assert_eq!(std::fs::read(root.join("hard")).unwrap(), b"changed");
    assert_eq!(std::fs::read(root.join("opaque/new")).unwrap(), b"new");
    for gone in ["etc/gone", "etc/.wh.gone", "opaque/old", "opaque/sub", "opaque/.wh..wh..opq"] {
        assert!(std::fs::symlink_metadata(root.join(gone)).is_err(), "{gone}");
    }
}
