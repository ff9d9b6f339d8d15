//! Archives and layouts as builders write them, made by hand after their documented layouts.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use camino::Utf8Path;
use common::{Home, entry, file, sha256};
use microvm_ports::StorageError;
use microvm_ports::storage::ImageInfo;
use serde_json::{Value, json};
use tar::{Builder, EntryType};

/// Layers and configuration of one image, in whatever form.
struct Parts {
    layers: Vec<Vec<u8>>,
    config: Value,
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// Three layers: files, changes with names in every form, and one without anything.
fn parts() -> Parts {
    let mut first = Builder::new(Vec::new());
    for name in ["etc/keep", "etc/gone", "opaque/old", "opaque/sub/old", "bin/tool"] {
        file(&mut first, name, name.as_bytes());
    }
    let mut second = Builder::new(Vec::new());
    file(&mut second, "./etc/.wh.gone", b"");
    file(&mut second, "/etc/keep", b"changed");
    file(&mut second, "./opaque/.wh..wh..opq", b"");
    file(&mut second, "opaque/new", b"new");
    entry(&mut second, EntryType::Link, b"bin/hard", b"bin/tool", b"");
    let empty = Builder::new(Vec::new());
    let layers: Vec<Vec<u8>> =
        [first, second, empty].into_iter().map(|layer| layer.into_inner().unwrap()).collect();
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Env": ["PATH=/bin", "A=b=c"], "User": "nobody", "WorkingDir": "/etc", "Entrypoint": ["/bin/tool"], "Cmd": ["c"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>()},
    });
    Parts { layers, config }
}

/// A tar of pieces.
#[derive(Default)]
struct Pieces(Option<Builder<Vec<u8>>>);

impl Pieces {
    fn tar(&mut self) -> &mut Builder<Vec<u8>> {
        self.0.get_or_insert_with(|| Builder::new(Vec::new()))
    }

    fn put(mut self, name: &str, bytes: &[u8]) -> Self {
        file(self.tar(), name, bytes);
        self
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.put(name, value.to_string().as_bytes())
    }

    fn link(mut self, name: &str, target: &str) -> Self {
        entry(self.tar(), EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"");
        self
    }

    fn directory(mut self, name: &str) -> Self {
        entry(self.tar(), EntryType::Directory, name.as_bytes(), b"", b"");
        self
    }

    fn bytes(mut self) -> Vec<u8> {
        self.tar();
        self.0.unwrap().into_inner().unwrap()
    }

    /// Writes the pieces into a folder instead.
    fn unpack(self, folder: &Utf8Path) {
        tar::Archive::new(&self.bytes()[..]).unpack(folder).unwrap();
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Blobs and the descriptor of a manifest.
fn oci_blobs(
    mut pieces: Pieces,
    parts: &Parts,
    kind: &str,
    pack: &dyn Fn(&[u8]) -> Vec<u8>,
) -> (Pieces, Value) {
    let mut blob = |media_type: &str, bytes: &[u8]| {
        let old = std::mem::take(&mut pieces);
        pieces = old.put(&format!("blobs/sha256/{}", sha256(bytes)), bytes);
        json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
    };
    let config = blob(CONFIG, parts.config.to_string().as_bytes());
    let layers: Vec<Value> = parts.layers.iter().map(|layer| blob(kind, &pack(layer))).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let manifest = blob(MANIFEST, manifest.to_string().as_bytes());
    (pieces, manifest)
}

fn layout(pieces: Pieces, manifests: &Value) -> Pieces {
    pieces
        .json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
        .json("index.json", &json!({"schemaVersion": 2, "manifests": manifests}))
}

/// The archive in pieces under names of docker's, with digests of the packed layers as names.
fn saved(parts: &Parts, config: &str, layer: &dyn Fn(&str) -> String) -> Vec<u8> {
    let text = parts.config.to_string();
    let config = config.replace("HEX", &sha256(text.as_bytes()));
    let mut pieces = Pieces::default().put(&config, text.as_bytes());
    let mut names: Vec<String> = Vec::new();
    for bytes in &parts.layers {
        let packed = gzip(bytes);
        let name = layer(&sha256(&packed));
        pieces = pieces.put(&name, &packed);
        names.push(name);
    }
    pieces
        .json("manifest.json", &json!([{"Config": config, "RepoTags": ["example/test:1"], "Layers": names}]))
        .bytes()
}

struct Reference {
    home: Home,
    parts: Parts,
    expected: ImageInfo,
}

impl Reference {
    /// The image from a plain layout; the other tests of layouts say that it is right.
    async fn new() -> Self {
        let (home, parts) = (Home::new(), parts());
        let (pieces, manifest) = oci_blobs(Pieces::default(), &parts, LAYER, &<[u8]>::to_vec);
        layout(pieces, &json!([manifest])).unpack(&home.path("reference"));
        let expected = home.add_path("reference", &home.path("reference")).await.unwrap();
        assert_eq!(expected.config.entrypoint, ["/bin/tool"]);
        Self { home, parts, expected }
    }

    /// The archive becomes this very image: the same files, the same configuration.
    async fn takes(&self, builder: &str, archive: &[u8]) {
        let added =
            self.home.add_bytes("x", archive).await.unwrap_or_else(|error| panic!("{builder}: {error}"));
        assert_eq!(added.digest, self.expected.digest, "{builder}: {added:?}");
    }

    async fn takes_folder(&self, builder: &str, pieces: Pieces) {
        let folder = self.home.path(&builder.replace([' ', '/'], "-"));
        pieces.unpack(&folder);
        let added =
            self.home.add_path("x", &folder).await.unwrap_or_else(|error| panic!("{builder}: {error}"));
        assert_eq!(added.digest, self.expected.digest, "{builder}: {added:?}");
    }

    async fn refuses(&self, what: &str, archive: &[u8], part: &str) {
        match self.home.add_bytes("x", archive).await {
            Err(StorageError::BadInput { detail, .. }) => assert!(detail.contains(part), "{what}: {detail}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn docker_archives_of_every_builder() {
    let this = Reference::new().await;
    let Parts { layers, config } = &this.parts;
    // go-containerregistry: manifest.json comes last, the configuration is called by its digest.
    let named = saved(&this.parts, "sha256:HEX", &|hex| format!("{hex}.tar.gz"));
    for builder in ["crane", "ko", "kaniko", "pack"] {
        this.takes(builder, &named).await;
    }
    this.takes("jib", &saved(&this.parts, "config.json", &|hex| format!("{hex}.tar.gz"))).await;
    let bazel = saved(&this.parts, "blobs/sha256/HEX", &|hex| format!("blobs/sha256/{hex}.tar.gz"));
    this.takes("bazel rules_oci", &bazel).await;
    this.takes("pack", &saved(&this.parts, "/HEX.json", &|hex| format!("/{hex}.tar"))).await;
    this.takes(
        "docker's old folders",
        &saved(&this.parts, "c.json", &|hex| format!("{}/layer.tar", &hex[..9])),
    )
    .await;
    this.takes("nix", &saved(&this.parts, "HEX.json", &|hex| format!("{hex}/layer.tar"))).await;
    // docker 1.10 to 24, and podman: a folder for each layer; one that is there already is a link.
    let text = config.to_string();
    let hex = sha256(text.as_bytes());
    let mut pieces = Pieces::default();
    for (number, layer) in layers.iter().enumerate() {
        let folder = sha256(&[u8::try_from(number).unwrap()]);
        pieces = pieces
            .directory(&format!("{folder}/"))
            .put(&format!("{folder}/VERSION"), b"1.0")
            .put(&format!("{folder}/json"), b"{}")
            .put(&format!("{}.tar", sha256(layer)), layer)
            .link(&format!("{folder}/layer.tar"), &format!("../{}.tar", sha256(layer)));
    }
    let names: Vec<String> = (0..layers.len())
        .map(|number| format!("{}/layer.tar", sha256(&[u8::try_from(number).unwrap()])))
        .collect();
    let listed = json!([{"Config": format!("{hex}.json"), "RepoTags": null, "Layers": names}]);
    let legacy = pieces
        .put(&format!("{hex}.json"), text.as_bytes())
        .json("repositories", &json!({"example/test": {"1": "x"}}))
        .json("manifest.json", &listed);
    this.takes("docker 1.10 to 24", &legacy.bytes()).await;
    // docker 25 and newer: an OCI layout with a manifest.json beside it.
    let (pieces, mut manifest) =
        oci_blobs(Pieces::default().directory("blobs/"), &this.parts, LAYER, &<[u8]>::to_vec);
    manifest["annotations"] = json!({"io.containerd.image.name": "registry.example/example/test:1", "org.opencontainers.image.ref.name": "1"});
    let names: Vec<String> = layers.iter().map(|layer| format!("blobs/sha256/{}", sha256(layer))).collect();
    let modern = layout(pieces, &json!([manifest])).json("repositories", &json!({})).json(
        "manifest.json",
        &json!([{"Config": format!("blobs/sha256/{hex}"), "RepoTags": ["example/test:1"], "Layers": names}]),
    );
    let modern = modern.bytes();
    this.takes("docker 25", &modern).await;
    tar::Archive::new(&modern[..]).unpack(this.home.path("unpacked")).unwrap();
    let added = this.home.add_path("x", &this.home.path("unpacked")).await.unwrap();
    assert_eq!(added.digest, this.expected.digest);
}

#[tokio::test]
async fn layouts_of_every_builder() {
    let this = Reference::new().await;
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    // zstd:chunked of buildah and nerdctl: frames to be skipped behind the data.
    let chunked = |bytes: &[u8]| [&zstd(bytes)[..], b"\x50\x2a\x4d\x18\x04\0\0\0abcd"].concat();
    // A gzip of several members, as estargz and parallel packers write it; the last of estargz is empty.
    let members = |bytes: &[u8]| {
        let (one, two) = bytes.split_at(512);
        [gzip(one), gzip(two), gzip(b"")].concat()
    };
    type Pack<'a> = (&'a str, &'a str, &'a dyn Fn(&[u8]) -> Vec<u8>);
    let packs: [Pack<'_>; 6] = [
        ("podman, buildah, umoci", "application/vnd.oci.image.layer.v1.tar+gzip", &gzip),
        ("buildx with zstd", "application/vnd.oci.image.layer.v1.tar+zstd", &zstd),
        ("zstd:chunked", "application/vnd.oci.image.layer.v1.tar+zstd", &chunked),
        ("estargz", "application/vnd.docker.image.rootfs.diff.tar.gzip", &members),
        ("foreign, but there", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &gzip),
        ("uncompressed", "application/vnd.oci.image.layer.nondistributable.v1.tar", &<[u8]>::to_vec),
    ];
    for (builder, kind, pack) in packs {
        let (pieces, manifest) = oci_blobs(Pieces::default(), &this.parts, kind, pack);
        this.takes_folder(builder, layout(pieces, &json!([manifest.clone()]))).await;
        let (pieces, _) = oci_blobs(Pieces::default(), &this.parts, kind, pack);
        this.takes(&format!("{builder}, as an archive"), &layout(pieces, &json!([manifest])).bytes()).await;
    }
    // buildx: an index in the index, attestations and other platforms beside the image.
    let (mut pieces, mut manifest) = oci_blobs(Pieces::default(), &this.parts, LAYER, &gzip);
    manifest["platform"] = json!({"os": "linux", "architecture": architecture()});
    let absent = json!({"mediaType": MANIFEST, "digest": digest(b"absent"), "size": 6, "platform": {"os": "linux", "architecture": "s390x"}});
    let proof = json!({"mediaType": MANIFEST, "digest": digest(b"proof"), "size": 5, "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    let inner =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [absent, proof, manifest]}).to_string();
    pieces = pieces.put(&format!("blobs/sha256/{}", sha256(inner.as_bytes())), inner.as_bytes());
    let outer = json!([{"mediaType": INDEX, "digest": digest(inner.as_bytes()), "size": inner.len(), "annotations": null}]);
    this.takes("buildx", &layout(pieces, &outer).bytes()).await;
    // No `oci-layout`, and fields that are null or not there.
    let mut sparse = Parts { layers: this.parts.layers.clone(), config: this.parts.config.clone() };
    for name in ["architecture", "os", "history", "created"] {
        sparse.config[name] = Value::Null;
    }
    sparse.config["config"]["Entrypoint"] = json!("/bin/tool");
    let (pieces, manifest) = oci_blobs(Pieces::default(), &sparse, LAYER, &gzip);
    let bare = pieces.json("index.json", &json!({"schemaVersion": 2, "manifests": [manifest]}));
    this.takes("a layout without oci-layout", &bare.bytes()).await;
    // skopeo copy … dir:
    let (pieces, _) = oci_blobs(Pieces::default(), &this.parts, LAYER, &gzip);
    pieces.unpack(&this.home.path("blobs-of-dir"));
    let folder = this.home.path("dir");
    std::fs::rename(this.home.path("blobs-of-dir/blobs/sha256"), &folder).unwrap();
    for piece in std::fs::read_dir(&folder).unwrap() {
        let piece = piece.unwrap().path();
        if std::fs::read(&piece).unwrap().starts_with(b"{\"config\":{\"digest\"") {
            std::fs::rename(&piece, folder.join("manifest.json")).unwrap();
        }
    }
    std::fs::write(folder.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    let added = this.home.add_path("x", &folder).await.unwrap();
    assert_eq!(
        (added.digest, added.source.as_str()),
        (this.expected.digest.clone(), "image in a folder dir")
    );
}

#[tokio::test]
async fn tags_choose_among_images() {
    let this = Reference::new().await;
    let mut other = parts();
    other.config["config"]["User"] = json!("root");
    let (pieces, mut one) = oci_blobs(Pieces::default(), &this.parts, LAYER, &gzip);
    let (pieces, mut two) = oci_blobs(pieces, &other, LAYER, &gzip);
    for (manifest, tag) in [(&mut one, "v1"), (&mut two, "v2")] {
        manifest["platform"] = json!({"os": "linux", "architecture": architecture()});
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    }
    let archive = layout(pieces, &json!([one, two])).bytes();
    let (file, folder) = (this.home.path("two.tar"), this.home.path("two"));
    std::fs::write(&file, &archive).unwrap();
    tar::Archive::new(&archive[..]).unpack(&folder).unwrap();
    let names = |tag: &str| json!({"Config": format!("{tag}.json"), "RepoTags": [format!("example/test:{tag}")], "Layers": []});
    let empty = |user: &str| json!({"config": {"User": user}, "rootfs": {"type": "layers", "diff_ids": []}});
    let docker = Pieces::default()
        .json("manifest.json", &json!([names("v1"), names("v2")]))
        .json("v1.json", &empty("nobody"))
        .json("v2.json", &empty("root"));
    let saved = this.home.path("saved.tar");
    std::fs::write(&saved, docker.bytes()).unwrap();
    for path in [file, folder, saved] {
        for (tag, user) in [("v1", "nobody"), ("v2", "root")] {
            let added =
                this.home.add_path("x", camino::Utf8Path::new(&format!("{path}:{tag}"))).await.unwrap();
            assert_eq!(added.config.user, user, "{path}:{tag}");
        }
        for wrong in [path.clone(), format!("{path}:v3").into(), format!("{path}:").into()] {
            let error = this.home.add_path("x", &wrong).await.unwrap_err().to_string();
            assert!(error.contains("v1`") && error.contains("v2`"), "{wrong}: {error}");
        }
    }
    // What has a colon in its name is no tag, and a folder of files has none.
    std::fs::create_dir_all(this.home.path("a:b/etc")).unwrap();
    this.home.add_path("x", &this.home.path("a:b")).await.unwrap();
    let error = this.home.add_path("x", &this.home.path("a:b:c")).await.unwrap_err().to_string();
    assert!(error.contains("no image called `c`"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_taken_whole_is_refused() {
    let this = Reference::new().await;
    let with = |change: &dyn Fn(&mut Parts)| {
        let mut parts = parts();
        change(&mut parts);
        let (pieces, manifest) = oci_blobs(Pieces::default(), &parts, LAYER, &gzip);
        layout(pieces, &json!([manifest])).bytes()
    };
    this.refuses(
        "another machine",
        &with(&|parts| parts.config["architecture"] = json!("s390x")),
        "linux/s390x",
    )
    .await;
    this.refuses("a layer too few", &with(&|parts| drop(parts.layers.pop())), "number of layers").await;
    let kinds = |config: &str, kind: &str| {
        let (pieces, manifest) = oci_blobs(Pieces::default(), &this.parts, kind, &gzip);
        let mut text = String::new();
        let bytes = pieces.bytes();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            if format!("sha256:{}", &name["blobs/sha256/".len()..]) == manifest["digest"] {
                std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            }
        }
        let text = text.replace(CONFIG, config);
        let (pieces, _) = oci_blobs(Pieces::default(), &this.parts, kind, &gzip);
        let pieces = pieces.put(&format!("blobs/sha256/{}", sha256(text.as_bytes())), text.as_bytes());
        layout(pieces, &json!([{"digest": digest(text.as_bytes()), "size": text.len()}])).bytes()
    };
    this.refuses("a chart", &kinds("application/vnd.cncf.helm.config.v1+json", LAYER), "vnd.cncf.helm").await;
    this.refuses("a module", &kinds(CONFIG, "application/vnd.wasm.content.layer.v1+wasm"), "vnd.wasm").await;
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    this.refuses("an encrypted layer", &kinds(CONFIG, encrypted), "+encrypted").await;
    // Docker before 1.10.
    let folder = sha256(b"old");
    let old = Pieces::default()
        .put(&format!("{folder}/json"), b"{}")
        .put(&format!("{folder}/layer.tar"), &this.parts.layers[0])
        .json("repositories", &json!({"test": {"latest": folder}}));
    this.refuses("docker 1.9", &old.bytes(), "before 1.10").await;
    let absent = json!([{"mediaType": MANIFEST, "digest": digest(b"x"), "size": 1}]);
    this.refuses("an incomplete layout", &layout(Pieces::default(), &absent).bytes(), "is missing").await;
    // What a layer unpacks to is what the configuration says, not only its packed bytes what the manifest says.
    let mut other = this.parts.config.clone();
    other["rootfs"]["diff_ids"][1] = json!(digest(b"other"));
    let other = Parts { layers: this.parts.layers.clone(), config: other };
    let (pieces, manifest) = oci_blobs(Pieces::default(), &other, LAYER, &gzip);
    this.refuses("a layer of another image", &layout(pieces, &json!([manifest])).bytes(), "sha256:").await;
    // A layer that is fetched from elsewhere.
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let (pieces, manifest) = oci_blobs(Pieces::default(), &this.parts, foreign, &gzip);
    let folder = this.home.path("foreign");
    layout(pieces, &json!([manifest])).unpack(&folder);
    std::fs::remove_file(folder.join("blobs/sha256").join(sha256(&gzip(&this.parts.layers[1])))).unwrap();
    let error = this.home.add_path("x", &folder).await.unwrap_err().to_string();
    assert!(error.contains("may not be distributed"), "{error}");
    // Somebody's files that are called like pieces are files.
    let page = Pieces::default().put("index.html", b"<p>").put("manifest.json", br#"{"name": "page"}"#);
    assert!(this.home.add_bytes("page", &page.bytes()).await.unwrap().source.starts_with("tar"));
}
