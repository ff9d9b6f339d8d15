//! Files as base64, and the operator's bounds of requests into guests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use microvm_api::CreateVm;
use microvm_api::files::{ENCODED_MAX, EncodedContent, WriteEncoded};
use microvm_api::operations::file;
use microvm_api::queries::{NoQuery, ReadFile};
use microvm_client::{Client, ClientError, WriteFile};
use microvm_server::Bounds;
use microvm_types::VmRef;
use microvm_types::extents::Content;
use microvm_types::files::TransferSummary;

async fn dev(client: &Client) -> VmRef {
    let request = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    client.create_vm(&request).await.unwrap();
    "dev".parse().unwrap()
}

fn encoded(path: &str, data: &[u8]) -> WriteEncoded {
    let content = STANDARD.encode(data);
    WriteEncoded { path: path.to_owned(), content, sha256: None, mode: None, owner: None, parents: false }
}

async fn write(client: &Client, vm: &VmRef, request: &WriteEncoded) -> Result<TransferSummary, ClientError> {
    client.call::<file::WriteEncoded>(vm, &NoQuery {}, request).await
}

async fn read(
    client: &Client,
    vm: &VmRef,
    path: &str,
    part: (u64, Option<u64>),
) -> Result<EncodedContent, ClientError> {
    let query = ReadFile { path: path.as_bytes().into(), offset: part.0, length: part.1 };
    client.call::<file::ReadEncoded>(vm, &query, ()).await
}

async fn put(client: &Client, vm: &VmRef, path: &str, data: &'static [u8]) -> Result<u64, ClientError> {
    let data = stream::iter([Ok(Bytes::from_static(data))]);
    Ok(client.write_file(vm, path.as_bytes(), &WriteFile::default(), data).await?.bytes)
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> String {
    outcome.unwrap_err().code().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_both_ways_as_base64_with_their_sum() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let data: Vec<u8> = (0..100_003u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let written = write(client, &vm, &encoded("/tmp/data", &data)).await.unwrap();
    assert_eq!(written.bytes, 100_003);
    let whole = read(client, &vm, "/tmp/data", (0, None)).await.unwrap();
    assert_eq!(STANDARD.decode(&whole.content).unwrap(), data);
    assert_eq!((whole.bytes, &whole.sha256, whole.stat.size), (100_003, &written.sha256, 100_003));
    let part = read(client, &vm, "/tmp/data", (99_999, Some(3))).await.unwrap();
    assert_eq!(STANDARD.decode(&part.content).unwrap(), data[99_999..100_002]);
    let empty = write(client, &vm, &encoded("/tmp/empty", b"")).await.unwrap();
    let read_back = read(client, &vm, "/tmp/empty", (0, None)).await.unwrap();
    assert_eq!((read_back.content.as_str(), read_back.sha256), ("", empty.sha256));
    // Nothing is written of what is not whole.
    let wrong = WriteEncoded { sha256: Some("00".repeat(32)), ..encoded("/tmp/wrong", b"x") };
    assert_eq!(code(write(client, &vm, &wrong).await), "source_failed");
    for content in ["eA", "eA==\n", "e A=", "%%%%"] {
        let broken = WriteEncoded { content: content.to_owned(), ..encoded("/tmp/wrong", b"") };
        assert_eq!(code(write(client, &vm, &broken).await), "body_invalid", "{content:?}");
    }
    assert_eq!(code(write(client, &vm, &encoded("wrong", b"x")).await), "path_invalid");
    assert!(client.stat(&vm, b"/tmp/wrong").await.is_err());
    let right = WriteEncoded { sha256: Some(written.sha256.to_uppercase()), ..encoded("/tmp/again", &data) };
    assert_eq!(write(client, &vm, &right).await.unwrap().sha256, written.sha256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base64_carries_ten_mebibytes_and_no_more() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let mut data = vec![7u8; ENCODED_MAX];
    assert_eq!(write(client, &vm, &encoded("/tmp/most", &data)).await.unwrap().bytes, ENCODED_MAX as u64);
    assert_eq!(read(client, &vm, "/tmp/most", (0, None)).await.unwrap().bytes, ENCODED_MAX as u64);
    data.push(7);
    assert_eq!(code(write(client, &vm, &encoded("/tmp/more", &data)).await), "body_too_large");
    let data: &'static [u8] = data.leak();
    put(client, &vm, "/tmp/more", data).await.unwrap();
    assert_eq!(code(read(client, &vm, "/tmp/more", (0, None)).await), "body_too_large");
    assert_eq!(read(client, &vm, "/tmp/more", (1, None)).await.unwrap().bytes, ENCODED_MAX as u64);
    assert_eq!(
        code(read(client, &vm, "/tmp/more", (0, Some(ENCODED_MAX as u64 + 1))).await),
        "body_too_large"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_beyond_the_operators_limit_leaves_nothing() {
    let server = support::start_bounded(Bounds { upload_bytes: Some(4), ..Bounds::default() }).await;
    let client = &server.client;
    let vm = dev(client).await;
    assert_eq!(put(client, &vm, "/tmp/small", b"four").await.unwrap(), 4);
    assert_eq!(write(client, &vm, &encoded("/tmp/small", b"also")).await.unwrap().bytes, 4);
    assert_eq!(code(put(client, &vm, "/tmp/large", b"fives").await), "body_too_large");
    assert_eq!(code(write(client, &vm, &encoded("/tmp/large", b"fives")).await), "body_too_large");
    assert!(client.stat(&vm, b"/tmp/large").await.is_err());
    // Of a file what it holds counts, holes included.
    let extents = async |hole: u64| {
        let content = stream::iter([Ok(Content::Data(Bytes::from_static(b"x"))), Ok(Content::Hole(hole))]);
        client.write_content(&vm, b"/tmp/holed", &WriteFile::default(), content).await
    };
    assert_eq!(code(extents(4).await), "body_too_large");
    assert!(client.stat(&vm, b"/tmp/holed").await.is_err());
    extents(3).await.unwrap();
    assert_eq!(client.stat(&vm, b"/tmp/holed").await.unwrap().size, 4);
}

/// An archive of files of 600 bytes, and of symbolic links where there is a target.
fn archive(entries: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if let Some(target) = target {
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, name, target).unwrap();
        } else {
            header.set_size(600);
            archive.append_data(&mut header, name, [7; 600].as_slice()).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

/// It in parts and without a length, as clients stream it.
async fn push(
    client: &Client,
    vm: &VmRef,
    path: &str,
    archive: &[u8],
) -> Result<TransferSummary, ClientError> {
    let parts: Vec<_> = archive.chunks(500).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    client.push_archive(vm, path.as_bytes(), None, stream::iter(parts)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_beyond_the_operators_limit_leaves_what_came_before_and_says_so() {
    let server = support::start_bounded(Bounds { upload_bytes: Some(2_000), ..Bounds::default() }).await;
    let client = &server.client;
    let vm = dev(client).await;
    let refused =
        push(client, &vm, "/tmp/into", &archive(&[("first", None), ("second", None)])).await.unwrap_err();
    let ClientError::Problem(problem) = refused else { panic!("{refused:?}") };
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("body_too_large", Some("upload")));
    assert!(
        problem.detail.contains("limit of 2000 bytes; what was unpacked of the archive before that stays")
    );
    assert_eq!(problem.message, problem.detail);
    assert!(client.stat(&vm, b"/tmp/into/second").await.is_err());
    // What is cut short is another fault, of which the same is told.
    let cut = push(client, &vm, "/tmp/into", &archive(&[("first", None)])[..900]).await.unwrap_err();
    let ClientError::Problem(problem) = cut else { panic!("{cut:?}") };
    assert!(
        problem.detail.ends_with("; what was unpacked of the archive before that stays"),
        "{}",
        problem.detail
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_stay_below_the_operators_root() {
    let bounds = Bounds { upload_root: Some("/tmp".into()), ..Bounds::default() };
    let server = support::start_bounded(bounds).await;
    let client = &server.client;
    let vm = dev(client).await;
    assert_eq!(put(client, &vm, "/tmp/in", b"x").await.unwrap(), 1);
    client.rename(&vm, b"/tmp/in", b"/tmp/moved").await.unwrap();
    client.make_directory(&vm, b"/tmp/folder", None).await.unwrap();
    for path in ["/etc/zz", "/tmp/../etc/zz", "/tmpfs", "/"] {
        assert_eq!(code(put(client, &vm, path, b"x").await), "upload_outside", "{path}");
        assert_eq!(code(write(client, &vm, &encoded(path, b"x")).await), "upload_outside", "{path}");
        assert_eq!(
            code(client.rename(&vm, b"/tmp/moved", path.as_bytes()).await),
            "upload_outside",
            "{path}"
        );
        assert_eq!(code(client.make_directory(&vm, path.as_bytes(), None).await), "upload_outside", "{path}");
        let archive = stream::iter([Ok(Bytes::from_static(&[0; 1024]))]);
        let pushed = client.push_archive(&vm, path.as_bytes(), None, archive).await;
        assert_eq!(code(pushed), "upload_outside", "{path}");
    }
    // A link on the way may lead out of it: what it leads to can change.
    push(client, &vm, "/tmp", &archive(&[("link", Some("folder"))])).await.unwrap();
    assert_eq!(code(put(client, &vm, "/tmp/link/zz", b"x").await), "upload_outside");
    assert_eq!(code(write(client, &vm, &encoded("/tmp/link/zz", b"x")).await), "upload_outside");
    let content = stream::iter([Ok(Content::Hole(1))]);
    let written = client.write_content(&vm, b"/tmp/link/zz", &WriteFile::default(), content).await;
    assert_eq!(code(written), "upload_outside");
    assert_eq!(code(push(client, &vm, "/tmp/link/zz", &archive(&[("a", None)])).await), "upload_outside");
    assert!(client.stat(&vm, b"/tmp/folder/zz").await.is_err());
    // Reading is bounded by nothing.
    assert!(client.stat(&vm, b"/").await.is_ok());
    assert!(client.stat(&vm, b"/etc/zz").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_outside_of_the_whole_guest() {
    let bounds = Bounds { upload_root: Some("/".into()), ..Bounds::default() };
    let server = support::start_bounded(bounds).await;
    let client = &server.client;
    let vm = dev(client).await;
    client.make_directory(&vm, b"/tmp/folder", None).await.unwrap();
    push(client, &vm, "/tmp", &archive(&[("link", Some("folder"))])).await.unwrap();
    assert_eq!(put(client, &vm, "/tmp/link/zz", b"x").await.unwrap(), 1);
    assert!(client.stat(&vm, b"/tmp/folder/zz").await.is_ok());
}
