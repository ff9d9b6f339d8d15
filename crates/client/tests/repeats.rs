//! A kept connection that the server has closed: a safe request is sent again, no other is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use microvm_api::operations::{pool, vm};
use microvm_api::queries::{ListVms, NoQuery};
use microvm_client::{Client, ClientError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// First line of the next request on a connection; empty at its end.
async fn request(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.unwrap() == 0 {
            return String::new();
        }
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned()
}

/// Serves one answer on each connection; the second request on it is read, and the connection closed without an answer.
async fn serve(listener: UnixListener, seen: mpsc::UnboundedSender<String>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        seen.send(request(&mut stream).await).unwrap();
        let body = r#"{"vms":[],"pools":[]}"#;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let second = request(&mut stream).await;
        if !second.is_empty() {
            seen.send(second).unwrap();
        }
    }
}

fn start(directory: &tempfile::TempDir) -> (Client, mpsc::UnboundedReceiver<String>) {
    let path = directory.path().join("api.sock").to_str().unwrap().to_owned();
    let listener = UnixListener::bind(&path).unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(serve(listener, seen));
    (Client::new(path), requests)
}

#[tokio::test]
async fn a_safe_request_is_sent_again_on_a_fresh_connection() {
    let directory = tempfile::tempdir().unwrap();
    let (client, mut requests) = start(&directory);
    for _ in 0..2 {
        client.call::<vm::List>(&(), &ListVms::default(), ()).await.unwrap();
    }
    let mut lines = Vec::new();
    requests.recv_many(&mut lines, 10).await;
    while let Ok(line) = requests.try_recv() {
        lines.push(line);
    }
    assert_eq!(
        lines, ["GET /api/v1/vms?waiting=false HTTP/1.1"; 3],
        "one for the first call, two for the second"
    );
}

#[tokio::test]
async fn a_request_that_acts_is_never_sent_again() {
    let directory = tempfile::tempdir().unwrap();
    let (client, mut requests) = start(&directory);
    client.call::<pool::List>(&(), &NoQuery {}, ()).await.unwrap();
    let paused = client.call::<vm::Pause>(&"dev".parse().unwrap(), &NoQuery {}, ()).await;
    assert!(matches!(paused, Err(ClientError::Lost { .. })), "{paused:?}");
    let mut lines = Vec::new();
    while let Ok(line) = requests.try_recv() {
        lines.push(line);
    }
    assert_eq!(lines, ["GET /api/v1/pools HTTP/1.1", "POST /api/v1/vms/dev/pause HTTP/1.1"]);
}
