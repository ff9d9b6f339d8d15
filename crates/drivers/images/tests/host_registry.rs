//! Images of registries: over plain HTTP on loopback, and over TLS with an authority of our own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use common::Home;
use microvm_conformance::fixtures::have;
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource};
use microvm_ports::{ImageStore, Progress, StorageError};

fn plain(reference: String) -> ImageSource {
    ImageSource::Registry { reference, plain_http: true, authorities: None, login: None }
}

async fn pull(home: &Home, source: &ImageSource) -> Result<ImageInfo, StorageError> {
    home.storage.add_image("tiny", source, &[], &ImageConfig::default(), Progress::ignored()).await
}

/// A registry on loopback, ended with the test.
struct Registry {
    child: Child,
    address: String,
    _files: tempfile::TempDir,
}

impl Registry {
    /// `tls`: files of a certificate and of its key.
    fn start(tls: Option<(&Utf8Path, &Utf8Path)>) -> Self {
        let files = tempfile::tempdir().unwrap();
        let tls = tls.map_or(String::new(), |(certificate, key)| {
            format!(", tls: {{certificate: '{certificate}', key: '{key}'}}")
        });
        let config = files.path().join("config.yml");
        // Port 0: the registry picks a free one and says which.
        std::fs::write(
            &config,
            format!("version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:0'{tls}}}\n", files.path().display()),
        )
        .unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut messages = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(messages.read_line(&mut line).unwrap() > 0, "the registry ended early");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',', ' ', '\n']).next().unwrap().to_owned();
            }
        };
        // Someone must go on reading, or the registry stops at a full pipe. Ends with it.
        std::thread::spawn(move || std::io::copy(&mut messages, &mut std::io::sink()));
        Self { child, address, _files: files }
    }

    fn push(&self, layout: &Utf8Path, name: &str) {
        let push = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false", &format!("oci:{layout}:latest")])
            .arg(format!("docker://{}/{name}", self.address))
            .output()
            .unwrap();
        assert!(push.status.success(), "{}", String::from_utf8_lossy(&push.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn an_image_is_pulled_from_a_registry() {
    if !have(&["docker-registry", "skopeo"]) {
        return;
    }
    let home = Home::new();
    let layout = home.path("layout");
    common::oci::write_layout(&layout);
    let registry = Registry::start(None);
    registry.push(&layout, "tiny:1");
    let reference = format!("{}/tiny:1", registry.address);
    let source = plain(reference.clone());
    let info = pull(&home, &source).await.unwrap();
    common::oci::check(&home, &info).await;
    let missing = plain(format!("{}/absent:1", registry.address));
    let error = pull(&home, &missing).await.unwrap_err();
    assert!(matches!(error, StorageError::Registry(_)), "{error:?}");
    let far = plain("registry.invalid/x:1".into());
    let error = pull(&home, &far).await.unwrap_err();
    assert!(matches!(error, StorageError::BadInput { .. }), "{error:?}");
    assert!(home.work().is_empty());
    // The same image packed by skopeo, as `docker save` and as a layout, is the same image.
    for kind in ["docker-archive", "oci-archive"] {
        let archive = home.path(kind);
        let packed = Command::new("skopeo")
            .args([
                "copy",
                "--insecure-policy",
                "--src-tls-verify=false",
                &format!("docker://{reference}"),
                &format!("{kind}:{archive}:tiny:1"),
            ])
            .output()
            .unwrap();
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        assert_eq!(home.add_path(kind, &archive).await.unwrap().digest, info.digest, "{kind}");
    }
}

/// An authority with its certificate, and a certificate with its key that it gave to loopback.
struct Authority {
    certificate: Utf8PathBuf,
    server: Utf8PathBuf,
    key: Utf8PathBuf,
}

impl Authority {
    fn new(home: &Home, name: &str) -> Self {
        let file = |what: &str| home.path(&format!("{name}-{what}"));
        let (certificate, authority_key) = (file("authority.pem"), file("authority.key"));
        let (server, key) = (file("server.pem"), file("server.key"));
        let make = |arguments: &[&str]| {
            let made = Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-days",
                    "2",
                ])
                .args(arguments)
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        let subject = format!("/CN={name}");
        make(&["-subj", &subject, "-keyout", authority_key.as_str(), "-out", certificate.as_str()]);
        make(&[
            "-subj",
            "/CN=registry",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-CA",
            certificate.as_str(),
            "-CAkey",
            authority_key.as_str(),
            "-keyout",
            key.as_str(),
            "-out",
            server.as_str(),
        ]);
        Self { certificate, server, key }
    }

    fn pem(&self) -> String {
        std::fs::read_to_string(&self.certificate).unwrap()
    }
}

#[tokio::test]
async fn a_registry_is_trusted_by_its_authority_only() {
    if !have(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let home = Home::new();
    let layout = home.path("layout");
    common::oci::write_layout(&layout);
    let (own, other) = (Authority::new(&home, "own"), Authority::new(&home, "other"));
    let registry = Registry::start(Some((&own.server, &own.key)));
    registry.push(&layout, "tiny:1");
    let reference = format!("{}/tiny:1", registry.address);
    let with = |authorities: Option<String>| ImageSource::Registry {
        reference: reference.clone(),
        plain_http: false,
        authorities,
        login: None,
    };
    for strangers in [None, Some(other.pem())] {
        let error = pull(&home, &with(strangers)).await.unwrap_err();
        assert!(matches!(error, StorageError::Registry(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("certificate") && text.contains("--ca-file"), "{text}");
    }
    // TLS is not left for what is easier.
    assert!(matches!(pull(&home, &plain(reference.clone())).await, Err(StorageError::Registry(_))));
    let broken = ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"];
    for broken in broken {
        let error = pull(&home, &with(Some(broken.to_owned()))).await.unwrap_err();
        assert!(matches!(error, StorageError::BadInput { .. }), "{broken}: {error:?}");
    }
    assert!(home.work().is_empty() && home.storage.images().await.unwrap().found.is_empty());
    let info = pull(&home, &with(Some(other.pem() + &own.pem()))).await.unwrap();
    common::oci::check(&home, &info).await;
}
