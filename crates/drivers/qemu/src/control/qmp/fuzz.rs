//! Fuzzing of what a VMM under its guest's control says: its lines, and the names of devices and nodes in its answers.

use std::sync::PoisonError;

use microvm_fuzz::Fuzz;
use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::{EVENT_QUEUE, Loading, Told, Waiting, read_all};
use crate::disks;

/// Lines as a connection gets them; tells what came of them.
async fn lines(bytes: &[u8]) -> String {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (read, _write) = ours.into_split();
    let waiting = Waiting::default();
    let (reply, answer) = oneshot::channel();
    waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(1, reply);
    let (events, mut inbox) = mpsc::channel(EVENT_QUEUE);
    let (loading, loaded) = watch::channel(Loading::default());
    let (jobs, ended) = watch::channel(None);
    let reading = read_all(BufReader::new(read), waiting, Told { events, loading, jobs });
    let writing = async {
        // It may be given up before all was written: then nobody reads the rest.
        let _ = theirs.write_all(bytes).await;
        drop(theirs);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    let mut outcome = format!("{:?} {}", *loaded.borrow(), ended.borrow().is_some());
    while let Ok(event) = inbox.try_recv() {
        outcome.push_str("event ");
        drop(event.name);
    }
    match answer.await {
        Ok(Ok(_)) => outcome.push_str("value"),
        Ok(Err(_)) => outcome.push_str("refused"),
        Err(_) => outcome.push_str("closed"),
    }
    outcome
}

/// Names that are read out of answers about disks.
fn names(answer: &Value) -> String {
    let mut outcome = String::new();
    for index in 0..3 {
        let overlay = disks::current_node(answer, index);
        let long = disks::overlay_of_long_chain(answer, index);
        for name in overlay.iter().chain(&long) {
            let next = disks::next_node(name);
            assert!(disks::number_of(&next) > disks::number_of(name) || disks::number_of(name) == u64::MAX);
            assert_eq!(
                disks::index_of(&next),
                disks::index_of(name),
                "`{name}` leads to another disk: {next}"
            );
        }
        outcome.push_str(if overlay.is_some() { "overlay " } else { "" });
        outcome.push_str(if long.is_some() { "long " } else { "" });
    }
    outcome
}

#[test]
fn lines_and_device_names_of_a_hostile_vmm() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let blocks =
        br#"[{"qdev":"/machine/peripheral/disk1/virtio-backend","inserted":{"node-name":"disk1.2","image":
        {"filename":"a","backing-image":{"filename":"b","backing-image":{"filename":"c"}}}}}]"#;
    Fuzz::new("qmp")
        .seed(*b"{\"return\":{},\"id\":1}\n")
        .seed(*b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":1}\n")
        .seed(*b"{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n")
        .seed(
            *b"{\"event\":\"BLOCK_JOB_COMPLETED\",\"data\":{\"device\":\"flatten-disk0\",\"error\":\"e\"}}\n",
        )
        .seed(*b"{\"event\":\"STOP\",\"timestamp\":{}}\n{\"event\":\"RESET\",\"data\":{\"guest\":true}}\n")
        .seed(*blocks)
        .words(&[b"disk0", b"disk1.", b".", b"null", b"[]", b"{}", b"\"id\":1,", b"\"event\":", b"\n"])
        .memory(4 << 20, 256)
        .run(|bytes| {
            let told = runtime.block_on(lines(bytes));
            let answer = serde_json::from_slice::<Value>(bytes).map(|answer| names(&answer));
            told + &answer.unwrap_or_default()
        });
}
