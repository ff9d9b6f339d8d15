//! Holes of files and trees, through the real agent on this host.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::Stdio;

use common::{HostAgent, bytes_of, collect, collect_content, content_of};
use microvm_ports::Holes;
use microvm_types::files::WriteOptions;
use sha2::{Digest as _, Sha256};

#[tokio::test]
async fn holes_stay_holes_both_ways() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let path = agent.path("sparse");
    let mut parts = vec![vec![0; 1 << 20]; 64];
    parts[40][77] = 1;
    guest.write_file(&path, &WriteOptions::default(), content_of(parts)).await.unwrap();
    let metadata = std::fs::metadata(agent.directory.path().join("sparse")).unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert_eq!(guest.stat(&path).await.unwrap().allocated, Some(metadata.blocks() * 512));
    let data = collect_content(guest.read_file(&path, 0, None).await.unwrap().1).await;
    assert_eq!(data.len(), 64 << 20);
    assert_eq!(data.iter().filter(|byte| **byte != 0).count(), 1);
}

#[tokio::test]
async fn holes_of_trees_stay_holes_both_ways() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let whole = tempfile::tempdir().unwrap();
    let (source, back) = (whole.path().join("tree"), whole.path().join("back"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&back).unwrap();
    for (name, size, step) in
        [("ends", 1 << 27, (1 << 27) - 4), ("many", 8 << 20, 20_000), ("hole", 1 << 20, 0)]
    {
        let file = std::fs::File::create(source.join(name)).unwrap();
        file.set_len(size).unwrap();
        for offset in (0..size).step_by(usize::try_from(step).unwrap().max(1)).filter(|_| step > 0) {
            file.write_all_at(b"data", offset).unwrap();
        }
    }
    let facts = |directory: &std::path::Path| {
        ["ends", "many", "hole"].map(|name| {
            let path = directory.join(name);
            let mut file = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(&path).unwrap());
            let mut hash = Sha256::new();
            while let part @ [_, ..] = file.fill_buf().unwrap() {
                hash.update(part);
                let count = part.len();
                file.consume(count);
            }
            let metadata = std::fs::metadata(&path).unwrap();
            (
                name,
                metadata.len(),
                metadata.blocks(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                hash.finalize(),
            )
        })
    };
    let tar = |arguments: &[&str], directory: &std::path::Path, input: &[u8]| {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(directory).args(arguments);
        let mut tar = tar.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(input).unwrap();
        let ended = tar.wait_with_output().unwrap();
        assert!(ended.status.success());
        ended.stdout
    };
    let packed = tar(&["-cS", "--format=posix", "tree"], whole.path(), b"");
    assert!(packed.len() < 8 << 20);
    guest.push_archive(&agent.path("in"), None, bytes_of(vec![packed])).await.unwrap();
    let there = agent.directory.path().join("in/tree");
    assert_eq!(facts(&there), facts(&source));
    let pulled =
        collect(guest.pull_archive(&agent.path("in/tree"), &[], Holes::Map).await.unwrap().data).await;
    assert!(pulled.len() < 8 << 20, "{} bytes were packed", pulled.len());
    tar(&["-x"], &back, &pulled);
    assert_eq!(facts(&back.join("tree")), facts(&source));
    let packed = tar(&["-cS", "--format=gnu", "tree"], whole.path(), b"");
    guest.push_archive(&agent.path("gnu"), None, bytes_of(vec![packed])).await.unwrap();
    let (one, other) = (facts(&agent.directory.path().join("gnu/tree")), facts(&source));
    for (one, other) in one.into_iter().zip(other) {
        assert_eq!((one.1, &one.5), (other.1, &other.5), "{}", one.0);
    }
}
