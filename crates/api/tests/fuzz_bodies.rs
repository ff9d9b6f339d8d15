//! Fuzzing of what clients and servers send each other: bodies, messages of the exec WebSocket, queries.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use microvm_api::exec::{ClientMessage, Execute, SendSignal, ServerMessage};
use microvm_api::files::WriteEncoded;
use microvm_api::guest::ShutdownGuest;
use microvm_api::image::AddImage;
use microvm_api::kernel::AddKernel;
use microvm_api::milliseconds::Milliseconds;
use microvm_api::pool::{Acquire, CreatePool, ResizePool};
use microvm_api::progress::ProgressLine;
use microvm_api::queries::{
    CleanUpSnapshots, ConsolePart, ListFiles, ListVms, PullArchive, ReadFile, WriteFile,
};
use microvm_api::query;
use microvm_api::snapshot::{CreateSnapshot, ForkVm, RestoreSnapshot, SnapshotFile};
use microvm_api::system::TemplateText;
use microvm_api::vm::{KillVm, RenameVm, ResizeVm, RestartVm, StopVm, UpdateVm};
use microvm_api::{CreateVm, Problem};
use microvm_fuzz::Fuzz;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What is read is read again from what is written of it, as the same. Compared as text: not every type compares.
fn again<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> String {
    match serde_json::from_slice::<T>(bytes) {
        Ok(value) => {
            let written = serde_json::to_string(&value).unwrap();
            let second: T = serde_json::from_str(&written).expect("what we write can be read");
            assert_eq!(serde_json::to_string(&second).unwrap(), written, "a body changes on its way");
            "fine".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// Values at which numbers, texts and fields break, for every target here.
const WORDS: &[&[u8]] = &[
    b"null",
    b"{}",
    b"[]",
    b"\"\"",
    b"-1",
    b"1e400",
    b"18446744073709551615",
    b"\"\\u0000\"",
    b"true",
    b"1.5",
    b"\"type\":\"start\",",
    b"\"memory_mb\":1,",
];

#[test]
fn bodies_of_requests() {
    Fuzz::new("requests")
        .seed(*br#"{"name":"a","template":"t","vcpus":1,"memory_mb":256,"labels":{"a":"b"},"start":false}"#)
        .seed(*br#"{"overrides":{"image":"i","shares":[{"source":"/s","target":"/t"}]},"cold":true}"#)
        .seed(*br#"{"limits":{"idle_seconds":5,"ephemeral":true},"metadata":{"a":"b"},"pool":"p"}"#)
        .seed(*br#"{"command":["a","b"],"timeout":5,"env":{"A":"b"},"user":"root","working_dir":"/"}"#)
        .seed(*br#"{"path":"/tmp/x","content":"eA==","mode":"644","owner":"root","parents":true}"#)
        .seed(*br#"{"force":true,"grace_seconds":3}"#)
        .seed(*br#"{"force":true,"delay_seconds":3}"#)
        .seed(*br#"{"name":"i","source":{"kind":"debian","suite":"s","packages":["a"]},"commands":["x"]}"#)
        .seed(*br#"{"count":3,"names":["a","b"],"labels":{},"metadata":{}}"#)
        .seed(*br#"{"path":"/x"}"#)
        .words(WORDS)
        .memory(1 << 20, 256)
        .run(|bytes| {
            let all = [
                again::<CreateVm>(bytes),
                again::<StopVm>(bytes),
                again::<WriteEncoded>(bytes),
                again::<ShutdownGuest>(bytes),
                again::<ResizeVm>(bytes),
                again::<RestartVm>(bytes),
                again::<KillVm>(bytes),
                again::<RenameVm>(bytes),
                again::<UpdateVm>(bytes),
                again::<Execute>(bytes),
                again::<SendSignal>(bytes),
                again::<AddImage>(bytes),
                again::<AddKernel>(bytes),
                again::<CreatePool>(bytes),
                again::<ResizePool>(bytes),
                again::<Acquire>(bytes),
                again::<CreateSnapshot>(bytes),
                again::<RestoreSnapshot>(bytes),
                again::<ForkVm>(bytes),
                again::<SnapshotFile>(bytes),
                again::<TemplateText>(bytes),
            ];
            all.concat()
        });
}

#[test]
fn messages_and_lines() {
    Fuzz::new("messages")
        .seed(*br#"{"type":"start","command":["sh"],"environment":{},"tty":{"rows":1,"columns":2}}"#)
        .seed(*br#"{"type":"attach","process":"0123456789abcdefghij","stdout_offset":5}"#)
        .seed(*br#"{"type":"resize","rows":1,"columns":2}"#)
        .seed(*br#"{"type":"exited","code":5,"signal":null}"#)
        .seed(*br#"{"type":"error","problem":{"type":"x","title":"t","status":404,"code":"c","detail":"d"}}"#)
        .seed(*b"1234.567")
        .words(WORDS)
        .memory(1 << 20, 256)
        .run(|bytes| {
            let all = [
                again::<ClientMessage>(bytes),
                again::<ServerMessage>(bytes),
                again::<ProgressLine>(bytes),
                again::<Problem>(bytes),
                again::<Milliseconds>(bytes),
            ];
            all.concat()
        });
}

#[test]
fn queries() {
    Fuzz::new("queries")
        .seed(*b"path=/a%FFb%20c&recursive&mode=0755&label=a%3Db&label=c%3Dd")
        .seed(*b"offset=5&length=18446744073709551615&parents=true&depth=2")
        .words(&[b"%", b"%%", b"%f", b"&", b"=", b"path=", b"mode=", b"+", "ä".as_bytes()])
        .run(|bytes| {
            let raw = String::from_utf8_lossy(bytes);
            let told = [
                query_again::<ListVms>(&raw),
                query_again::<ConsolePart>(&raw),
                query_again::<ReadFile>(&raw),
                query_again::<WriteFile>(&raw),
                query_again::<ListFiles>(&raw),
                query_again::<PullArchive>(&raw),
                query_again::<CleanUpSnapshots>(&raw),
            ];
            told.concat()
        });
}

/// What is read of a query is read again from what is written of it, as the same.
fn query_again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(raw: &str) -> String {
    let read: T = match query::read(raw) {
        Ok(read) => read,
        Err(error) => return error.to_string(),
    };
    let written = query::write(&read).expect("parameters can be written");
    let again: T = query::read(written.strip_prefix('?').unwrap_or_default()).expect("and read again");
    assert_eq!(again, read, "{written}");
    String::new()
}
