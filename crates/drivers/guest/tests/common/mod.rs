//! Agents to test against: an ordinary process on this host, or PID 1 of a real machine under QEMU.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part of this")]

pub mod machine;
pub mod peer;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use camino::Utf8PathBuf;
use futures::StreamExt as _;
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_ports::GuestConnector as _;
use microvm_ports::content::{self, ContentStream};
use microvm_ports::guest::{ByteStream, Guest, GuestEndpoint, Identity, ProcessEvent, ProcessHandle};
use microvm_types::exec::{ExecRequest, ExitStatus};
use tokio::process::{Child, Command};

/// The agent to test: `MICROVM_TEST_AGENT`, or the one beside the tests in the target directory.
pub fn agent_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MICROVM_TEST_AGENT") {
        return Some(path.into());
    }
    let beside = std::env::current_exe().ok()?.parent()?.parent()?.join("microvm-agent");
    beside.exists().then_some(beside)
}

/// An agent on this host.
pub struct HostAgent {
    pub directory: tempfile::TempDir,
    pub endpoint: GuestEndpoint,
    child: Child,
    /// The newest epoch: the agent takes every one only once.
    epoch: AtomicU64,
}

impl HostAgent {
    /// Starts one, or says why not.
    pub async fn start() -> Option<Self> {
        let Some(agent) = agent_binary() else {
            eprintln!("SKIPPED: no agent binary (build microvm-agent or set MICROVM_TEST_AGENT)");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let child = Command::new(agent)
            .arg("--serve-socket")
            .arg(&path)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let endpoint = GuestEndpoint::UnixSocket(Utf8PathBuf::from_path_buf(path).unwrap());
        Some(Self { directory, endpoint, child, epoch: AtomicU64::new(0) })
    }

    /// Connects in a new epoch, as soon as it listens.
    pub async fn connect(&self) -> Arc<dyn Guest> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        connect(&self.endpoint, epoch, &Identity::default()).await
    }

    pub fn path(&self, name: &str) -> Vec<u8> {
        self.directory.path().join(name).to_str().unwrap().as_bytes().to_vec()
    }

    /// Processor time the agent has used so far.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id().unwrap())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

/// Connects within a minute; the socket may not be there yet.
pub async fn connect(endpoint: &GuestEndpoint, epoch: u64, identity: &Identity) -> Arc<dyn Guest> {
    let connector = SocketGuestConnector::new(GuestConfig::default());
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match connector.connect(endpoint, epoch, identity, Duration::from_secs(60)).await {
            Ok(guest) => return guest,
            Err(error) if tokio::time::Instant::now() > end => panic!("no connection: {error}"),
            // The only sign that a program listens is that it does.
            Err(microvm_ports::GuestError::Unreachable(_)) => {
                tokio::time::sleep(Duration::from_millis(5)).await
            }
            Err(error) => panic!("no connection: {error}"),
        }
    }
}

pub fn command(words: &[&str]) -> ExecRequest {
    ExecRequest { command: words.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

pub fn shell(script: &str) -> ExecRequest {
    command(&["/bin/sh", "-c", script])
}

/// Everything a process wrote, and its end.
pub async fn finish(mut process: ProcessHandle) -> (Vec<u8>, Vec<u8>, ExitStatus) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match process.events.next().await.expect("a process ends with Exited or Lost") {
            ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            ProcessEvent::Exited(status) => return (stdout, stderr, status),
            ProcessEvent::Lost(error) => panic!("lost: {error}"),
            ProcessEvent::UpToDate => panic!("nobody only looked"),
        }
    }
}

pub async fn run(guest: &dyn Guest, request: &ExecRequest) -> (String, String, ExitStatus) {
    let (stdout, stderr, status) = finish(guest.exec(request).await.unwrap()).await;
    (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned(), status)
}

pub fn bytes_of(parts: Vec<Vec<u8>>) -> ByteStream {
    Box::pin(futures::stream::iter(parts.into_iter().map(|part| Ok(part.into()))))
}

pub fn content_of(parts: Vec<Vec<u8>>) -> ContentStream {
    content::of_bytes(bytes_of(parts))
}

pub async fn collect_content(stream: ContentStream) -> Vec<u8> {
    collect(content::expanded(stream)).await
}

pub async fn collect(mut stream: ByteStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(part) = stream.next().await {
        all.extend_from_slice(&part.unwrap());
    }
    all
}

/// Bytes that look random and are the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
