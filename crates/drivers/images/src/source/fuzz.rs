//! Fuzzing of archives, layers and the documents of images.

use std::io::{self, Read as _};

use camino::Utf8Path;
use microvm_archive::{Entry, EntryType};
use microvm_durable::cancel::Cancel;
use microvm_durable::workspace::Workspace;
use microvm_fuzz::Fuzz;
use microvm_ports::{Progress, StorageError};
use tar::Header;

use super::builder::Builder;
use super::compression::decompress;
use super::tar_image::{Whiteouts, add_tar, read_tar};
use super::{docker, oci, path};
use crate::config::ArchiveLimits;
use crate::erofs;

/// Small, so that what is beyond a limit is met often.
const LIMITS: ArchiveLimits = ArchiveLimits { entries: 400, bytes: 1 << 22, memory: 1 << 18 };
/// Seven octal digits: the greatest number of a device that fits in a header.
const DEVICE_MAX: u32 = 0o7_777_777;
/// Words of tar and of the documents of images.
const WORDS: &[&[u8]] = &[
    b"./",
    b"../",
    b"/",
    b".wh.",
    b".wh..wh..opq",
    b"\0",
    b"GNU.sparse.major=1\n",
    b"SCHILY.xattr.user.a=b\n",
    b"SCHILY.acl.access=u::rwx,g::r,o::r\n",
    b"20 path=",
    b"size=",
    b"ustar\x0000",
    b"ustar  \0",
    b"null",
    b"[]",
    b"{}",
    b"sha256:",
    b"manifests",
];

fn append(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    if link.is_empty() {
        tar.append_data(&mut header, name, content).unwrap();
    } else {
        tar.append_link(&mut header, name, link).unwrap();
    }
}

/// One entry of each kind.
fn sound() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, EntryType::Directory, "d", "", b"");
    append(&mut tar, EntryType::Regular, "d/file", "", b"content");
    append(&mut tar, EntryType::Symlink, "link", "d/file", b"");
    append(&mut tar, EntryType::Link, "hard", "d/file", b"");
    append(&mut tar, EntryType::Fifo, "fifo", "", b"");
    append(&mut tar, EntryType::Char, "null", "", b"");
    append(&mut tar, EntryType::Regular, &"long/".repeat(40), "", b"x");
    let records = [
        ("SCHILY.xattr.user.a", &b"b"[..]),
        ("SCHILY.acl.access", b"u::rw-\nu:7:r--\ng::r--\nm::r--\no::---"),
        ("mtime", b"1.5"),
        ("path", b"pax"),
    ];
    tar.append_pax_extensions(records).unwrap();
    append(&mut tar, EntryType::Regular, "p", "", b"y");
    let map = [b"1\n4096\n3\n".as_slice(), &[0; 503], b"abc"].concat();
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.realsize", &b"9000"[..]),
        ("GNU.sparse.name", &b"s"[..]),
    ];
    tar.append_pax_extensions(records).unwrap();
    append(&mut tar, EntryType::Regular, "sparse", "", &map);
    tar.into_inner().unwrap()
}

fn whiteouts() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, EntryType::Regular, "d/.wh..wh..opq", "", b"");
    append(&mut tar, EntryType::Regular, ".wh.link", "", b"");
    append(&mut tar, EntryType::Regular, "d/new", "", b"z");
    tar.into_inner().unwrap()
}

fn walk(bytes: &[u8]) -> io::Result<Vec<Entry>> {
    let mut reader = read_tar(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    reader.drain()?;
    Ok(entries)
}

/// Meaning of an entry, its data and the places of a sparse file left out.
fn meaning(entry: &Entry) -> impl PartialEq + std::fmt::Debug + use<> {
    let Entry { path, link, kind, mode, uid, gid, modified, modified_ns, device, size, .. } = entry;
    let xattrs = (entry.xattrs.clone(), entry.acls.clone());
    (
        path.clone(),
        link.clone(),
        *kind,
        *mode,
        (*uid, *gid),
        (*modified, *modified_ns),
        *device,
        *size,
        xattrs,
    )
}

/// Writes an entry anew, all that may not fit in records, and reads it.
fn again(entry: &Entry) {
    if entry.segments.is_some() || entry.size > 1 << 16 {
        return;
    }
    let decimal = |number: u64| number.to_string().into_bytes();
    let total = i128::from(entry.modified) * 1_000_000_000 + i128::from(entry.modified_ns);
    let (sign, size) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
    let time = format!("{sign}{}.{:09}", size / 1_000_000_000, size % 1_000_000_000);
    let mut records = vec![
        ("path".to_owned(), entry.path.clone()),
        ("linkpath".to_owned(), entry.link.clone()),
        ("uid".to_owned(), decimal(entry.uid.into())),
        ("gid".to_owned(), decimal(entry.gid.into())),
        ("mtime".to_owned(), time.into_bytes()),
    ];
    for (kind, text) in &entry.acls {
        records.push((String::from_utf8(kind.record().to_vec()).unwrap(), text.clone()));
    }
    for (name, value) in &entry.xattrs {
        let Ok(name) = std::str::from_utf8(name) else { return };
        // Such a name could not be told from its value.
        if name.contains('=') {
            return;
        }
        records.push((format!("SCHILY.xattr.{name}"), value.clone()));
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), &value[..]))).unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode.into());
    header.set_size(entry.size);
    // A greater number is written without its first digits, and no record holds it.
    if entry.device.0.max(entry.device.1) > DEVICE_MAX {
        return;
    }
    header.set_device_major(entry.device.0).unwrap();
    header.set_device_minor(entry.device.1).unwrap();
    header.set_cksum();
    tar.append(&header, &vec![0; usize::try_from(entry.size).unwrap()][..]).unwrap();
    let read = walk(&tar.into_inner().unwrap()).expect("what is written can be read");
    assert_eq!(read.iter().map(meaning).collect::<Vec<_>>(), [meaning(entry)]);
}

fn told<T>(result: Result<T, StorageError>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "fine".to_owned())
}

/// A folder for one input.
fn workspace(folder: &tempfile::TempDir) -> Workspace {
    Workspace::create(Utf8Path::from_path(folder.path()).unwrap()).unwrap()
}

fn builder(workspace: &Workspace) -> Builder {
    Builder::new(
        workspace.join("contents"),
        LIMITS,
        crate::erofs::TreeMemory::of(LIMITS.memory),
        Cancel::default(),
        Progress::ignored(),
    )
    .unwrap()
}

/// Makes an image of what was accepted.
fn write(mut builder: Builder, workspace: &Workspace) -> String {
    if let Err(error) = builder.translate_acls("x") {
        return error.to_string();
    }
    let Builder { tree, spool, .. } = builder;
    told(erofs::write(&tree, spool, &workspace.join("image"), &Cancel::default(), &|_, _| {}))
}

#[test]
fn entries_of_archives() {
    // A global header is copied for every entry that is kept here.
    Fuzz::new("tar")
        .seed(sound())
        .seed(whiteouts())
        .words(WORDS)
        .repair(microvm_fuzz::tar::repair)
        .memory(8 << 20, 200)
        .run(|bytes| match walk(bytes) {
            Ok(entries) => {
                entries.iter().for_each(again);
                format!("{:?}", entries.iter().map(|entry| entry.kind).collect::<Vec<_>>())
            }
            Err(error) => error.to_string(),
        });
}

#[test]
fn layers_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [sound(), whiteouts()].concat();
    Fuzz::new("layers")
        .seed(layers)
        .seed(whiteouts())
        .words(WORDS)
        .repair(microvm_fuzz::tar::repair)
        .memory(8 << 20, 200)
        .run(|bytes| {
            let workspace = workspace(&folder);
            let mut builder = builder(&workspace);
            // Cut at a header, so that most layers are whole.
            let middle = (bytes.len() / 2).next_multiple_of(512).min(bytes.len());
            for layer in [&bytes[..middle], &bytes[middle..]] {
                builder.tree.next_layer();
                if let Err(error) = add_tar(&mut builder, "x", layer, Whiteouts::Oci) {
                    return error.to_string();
                }
            }
            write(builder, &workspace)
        });
}

#[test]
fn archives_of_any_kind() {
    let folder = tempfile::tempdir().unwrap();
    let mut docker = tar::Builder::new(Vec::new());
    let hash = microvm_durable::files::sha256(&sound());
    let config = format!(
        r#"{{"config":{{"Env":["A=b"],"User":"1","Cmd":["sh"]}},"rootfs":{{"diff_ids":["sha256:{hash}"]}}}}"#
    );
    append(
        &mut docker,
        EntryType::Regular,
        "manifest.json",
        "",
        br#"[{"Config":"c.json","Layers":["l.tar"]}]"#,
    );
    append(&mut docker, EntryType::Regular, "c.json", "", config.as_bytes());
    append(&mut docker, EntryType::Regular, "l.tar", "", &sound());
    let blob = |bytes: &[u8]| (microvm_durable::files::sha256(bytes), bytes.len());
    let (config_hash, config_length) = blob(config.as_bytes());
    let manifest = format!(
        r#"{{"config":{{"digest":"sha256:{config_hash}","size":{config_length}}},
            "layers":[{{"mediaType":"tar","digest":"sha256:{hash}","size":{}}}]}}"#,
        sound().len()
    );
    let (manifest_hash, manifest_length) = blob(manifest.as_bytes());
    let index =
        format!(r#"{{"manifests":[{{"digest":"sha256:{manifest_hash}","size":{manifest_length}}}]}}"#);
    let mut layout = tar::Builder::new(Vec::new());
    append(&mut layout, EntryType::Regular, "oci-layout", "", b"{}");
    append(&mut layout, EntryType::Regular, "index.json", "", index.as_bytes());
    append(
        &mut layout,
        EntryType::Regular,
        &format!("blobs/sha256/{manifest_hash}"),
        "",
        manifest.as_bytes(),
    );
    append(&mut layout, EntryType::Regular, &format!("blobs/sha256/{config_hash}"), "", config.as_bytes());
    append(&mut layout, EntryType::Regular, &format!("blobs/sha256/{hash}"), "", &sound());
    let (docker, layout) = (docker.into_inner().unwrap(), layout.into_inner().unwrap());
    for seed in [&docker, &layout] {
        let workspace = workspace(&folder);
        let file = workspace.join("archive");
        std::fs::write(&file, seed).unwrap();
        path::add_path(&mut builder(&workspace), &workspace, &file).unwrap();
    }
    Fuzz::new("archives")
        .seed(sound())
        .seed(docker)
        .seed(layout)
        .words(WORDS)
        .repair(microvm_fuzz::tar::repair)
        .memory(8 << 20, 200)
        .run(|bytes| {
            let workspace = workspace(&folder);
            let file = workspace.join("archive");
            std::fs::write(&file, bytes).unwrap();
            let mut builder = builder(&workspace);
            match path::add_path(&mut builder, &workspace, &file) {
                Ok(kind) => kind.to_owned() + &write(builder, &workspace),
                Err(error) => error.to_string().replace(file.as_str(), ""),
            }
        });
}

#[test]
fn compressed_streams() {
    let plain = sound();
    let gzip = std::io::Read::bytes(flate2::read::GzEncoder::new(&plain[..], flate2::Compression::fast()));
    let gzip: Vec<u8> = gzip.map(Result::unwrap).collect();
    let mut xz = Vec::new();
    liblzma::read::XzEncoder::new(&plain[..], 1).read_to_end(&mut xz).unwrap();
    // The dictionaries of decoders are bounded; what C libraries take is not counted here.
    Fuzz::new("compressed")
        .seed(gzip)
        .seed(zstd::encode_all(&plain[..], 1).unwrap())
        .seed(xz)
        .memory(4 << 20, 64)
        .run(|bytes| {
            let mut reader = match decompress("x", bytes) {
                Ok(reader) => reader.take(1 << 20),
                Err(error) => return error.to_string(),
            };
            std::io::copy(&mut reader, &mut std::io::sink())
                .map_or_else(|error| error.to_string(), |_| "fine".to_owned())
        });
}

#[test]
fn documents_of_images() {
    let digest = "sha256:".to_owned() + &"ab".repeat(32);
    let descriptor = format!(r#"{{"mediaType":"m","digest":"{digest}","size":5}}"#);
    Fuzz::new("documents")
        .seed(format!(r#"{{"manifests":[{descriptor},{{"digest":"x","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#))
        .seed(format!(r#"{{"config":{descriptor},"layers":[{descriptor}]}}"#))
        .seed(format!(
            r#"{{"config":{{"Env":["A=b","C"],"User":"1:2","WorkingDir":"/w","Entrypoint":null,"Cmd":["a"]}},
                "rootfs":{{"diff_ids":["{digest}"]}}}}"#
        ))
        .words(WORDS)
        .memory(1 << 20, 256)
        .run(|bytes| {
            let mut outcome = match oci::parse("x", bytes) {
                Ok(document) => {
                    let manifests = document.manifests.unwrap_or_default();
                    let layers = document.layers.into_iter().flatten().chain(document.config);
                    for descriptor in layers.chain(manifests.iter().cloned()) {
                        if let Ok(name) = oci::blob("x", &descriptor.digest) {
                            assert!(!name.contains(".."), "a piece outside of its layout: {name}");
                        }
                    }
                    told(oci::choose("x", &manifests))
                }
                Err(error) => error.to_string(),
            };
            outcome.push_str(&told(oci::read_config("x", bytes)));
            outcome.push_str(if docker::is_part(bytes) { "part" } else { "" });
            outcome
        });
}
