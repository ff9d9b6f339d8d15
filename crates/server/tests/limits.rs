//! The server against callers that are slow, many or greedy, on its real socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use microvm_server::{Limits, socket_path};
use support::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longer than any limit of these tests, shorter than the default ones.
const LONG: Duration = Duration::from_secs(20);

fn short() -> Limits {
    let moment = Duration::from_secs(1);
    Limits { head: moment, body: moment, silence: moment, lateness: moment, connections: 16, bytes: 16 << 20 }
}

async fn connect(server: &Server) -> UnixStream {
    UnixStream::connect(socket_path(&server.root)).await.unwrap()
}

/// All that comes until the server closes the connection; fails if it does not.
async fn rest(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    // A connection that is closed with bytes of ours unread ends with an error; what came before counts.
    let _ = timeout(LONG, stream.read_to_end(&mut all)).await.expect("the server keeps the connection");
    String::from_utf8_lossy(&all).into_owned()
}

/// One answer with its body, for answers with a `content-length`.
async fn answer(stream: &mut UnixStream) -> (u16, String) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        timeout(LONG, stream.read_exact(&mut byte)).await.unwrap().unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    timeout(LONG, stream.read_exact(&mut body)).await.unwrap().unwrap();
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

fn post(path: &str, headers: &str) -> String {
    format!("POST /api/v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n")
}

async fn lives(server: &Server) {
    let mut stream = connect(server).await;
    stream.write_all(b"GET /api/v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_bodies_are_given_up() {
    let server = support::start_with(short()).await;
    let mut silent = connect(&server).await;
    let mut half = connect(&server).await;
    half.write_all(b"GET /api/v1/health/live HTTP/1.1\r\nx-a: ").await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    // What hyper answers to half a head is its own; it must end.
    rest(&mut half).await;
    // A byte now and then does not help: the limit is for the whole.
    let mut dripping = connect(&server).await;
    dripping.write_all(post("vms", "content-length: 1000\r\n").as_bytes()).await.unwrap();
    let (mut reader, mut writer) = dripping.into_split();
    let drip = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while writer.write_all(b" ").await.is_ok() {
            tick.tick().await;
        }
    });
    let mut all = Vec::new();
    let _ = timeout(LONG, reader.read_to_end(&mut all)).await.unwrap();
    let all = String::from_utf8_lossy(&all).into_owned();
    assert!(all.starts_with("HTTP/1.1 504") && all.contains("body_too_slow"), "{all}");
    drop(reader);
    timeout(LONG, drip).await.unwrap().unwrap();
    lives(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_fall_silent_are_given_up() {
    let server = support::start_with(short()).await;
    let request = microvm_api::CreateVm { name: Some("dev".parse().unwrap()), ..Default::default() };
    server.client.create_vm(&request).await.unwrap();
    let mut stream = connect(&server).await;
    let head = "PUT /api/v1/vms/dev/files?path=/tmp/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"half").await.unwrap();
    let all = rest(&mut stream).await;
    assert!(all.starts_with("HTTP/1.1 400") && all.contains("nothing came for 1s"), "{all}");
    assert!(server.client.stat(&"dev".parse().unwrap(), b"/tmp/x").await.is_err(), "half of it was kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_refused_before_they_are_read() {
    let server = support::start_with(Limits { body: LONG, ..short() }).await;
    for (path, length) in [
        ("vms", 2 << 20),
        ("vms/dev/guest/execute", 9 << 20),
        ("pools/x/resize", 65 << 10),
        ("vms/dev/stop", 1u64 << 40),
    ] {
        let mut stream = connect(&server).await;
        stream.write_all(post(path, &format!("content-length: {length}\r\n")).as_bytes()).await.unwrap();
        let (status, text) = answer(&mut stream).await;
        assert_eq!(status, 413, "{path}: {text}");
        assert!(text.contains("body_too_large"), "{text}");
    }
    // Without an announcement it is refused where it becomes too long.
    let mut stream = connect(&server).await;
    stream.write_all(post("pools/x/resize", "transfer-encoding: chunked\r\n").as_bytes()).await.unwrap();
    for _ in 0..5 {
        let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    assert_eq!(answer(&mut stream).await.0, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_for_one_process_is_bounded() {
    let server = support::start_with(Limits { body: LONG, head: LONG, ..short() }).await;
    // Half of the budget is 8 MiB, and each byte of JSON counts sixteen times.
    let mut holding = connect(&server).await;
    let large = post("vms", &format!("content-length: {}\r\nexpect: 100-continue\r\n", 400 << 10));
    holding.write_all(large.as_bytes()).await.unwrap();
    let mut line = [0; 12];
    holding.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100");
    let mut second = connect(&server).await;
    second.write_all(large.as_bytes()).await.unwrap();
    let (status, text) = answer(&mut second).await;
    assert_eq!((status, text.contains("server_busy")), (503, true), "{text}");
    lives(&server).await;
    drop(holding);
    // What the first held is free as soon as the server notices that it went away.
    let freed = async {
        loop {
            let mut third = connect(&server).await;
            third.write_all(large.as_bytes()).await.unwrap();
            third.read_exact(&mut line).await.unwrap();
            if &line == b"HTTP/1.1 100" {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, freed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_does_not_take_all_connections() {
    let server = support::start_with(Limits { head: LONG, ..short() }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(connect(&server).await);
    }
    let mut refused = connect(&server).await;
    refused.write_all(b"GET /api/v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (status, text) = answer(&mut refused).await;
    assert_eq!((status, text.contains("server_busy")), (503, true), "{text}");
    assert_eq!(rest(&mut refused).await, "");
    // Another process is served meanwhile.
    let program = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.settimeout(20)\ns.connect(sys.argv[1])\n\
                   s.sendall(b'GET /api/v1/health/live HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')\n\
                   sys.stdout.write(s.recv(12).decode())";
    let path = socket_path(&server.root);
    let other = tokio::process::Command::new("python3").args(["-c", program, path.as_str()]).output();
    assert_eq!(String::from_utf8(other.await.unwrap().stdout).unwrap(), "HTTP/1.1 200");
    held.clear();
    let free = async {
        loop {
            let mut stream = connect(&server).await;
            stream.write_all(b"GET /api/v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            if answer(&mut stream).await.0 == 200 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pipelined_requests_are_cheap() {
    const COUNT: usize = 1000;
    let server = support::start_with(Limits::default()).await;
    let (mut reader, mut writer) = connect(&server).await.into_split();
    let begun = Instant::now();
    let requests = "GET /api/v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(COUNT);
    let write = async { writer.write_all(requests.as_bytes()).await.unwrap() };
    let read = async {
        let (mut seen, mut open, mut buffer) = (0, Vec::new(), vec![0; 1 << 20]);
        while seen < COUNT {
            let count = reader.read(&mut buffer).await.unwrap();
            assert!(count > 0, "closed after {seen} answers");
            open.extend_from_slice(&buffer[..count]);
            seen += open.windows(15).filter(|part| part == b"HTTP/1.1 200 OK").count();
            open.drain(..open.len().saturating_sub(14));
        }
    };
    // Others are served meanwhile.
    let other = async {
        for _ in 0..20 {
            let begun = Instant::now();
            lives(&server).await;
            assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
        }
    };
    timeout(LONG, async { tokio::join!(write, read, other) }).await.expect("each document is made anew");
    eprintln!("{COUNT} answers took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_keep_their_place() {
    let server = support::start_with(Limits { head: LONG, ..short() }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&server).await;
        let head = "GET /api/v1/events HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 101");
        held.push(stream);
    }
    let mut refused = connect(&server).await;
    refused.write_all(b"GET /api/v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut refused).await.0, 503);
}
