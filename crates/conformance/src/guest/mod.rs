//! Suite of every [`Guest`]. The commands used are those of any small Linux system (and of the fake).

mod archives;
mod files;
mod processes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use microvm_ports::guest::{CloseReason, Guest, GuestError, ProcessEvent, ProcessHandle};
use microvm_types::ErrorKind;
use microvm_types::exec::{ExecRequest, ExitStatus};

use crate::{Must, Suite};

/// Gives the suite its guest.
#[async_trait]
pub trait GuestHarness: Send + Sync {
    /// A running guest with an open channel, the same for all checks. Its identity had the host name `conformance`, the
    /// variable `FROM_IDENTITY=yes`, no default user and no default directory.
    async fn guest(&self) -> Arc<dyn Guest>;

    /// A further running guest (or a further channel to the same one) that a check may close.
    async fn guest_to_close(&self) -> Arc<dyn Guest>;

    /// Longest time one check may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Common ground of the checks.
pub(super) struct Scene {
    pub(super) guest: Arc<dyn Guest>,
    next: AtomicU64,
}

/// A process that has ended, with all it said.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) exit: ExitStatus,
}

impl Finished {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

impl Scene {
    /// A new directory of the guest's, as text.
    pub(super) async fn directory(&self) -> String {
        let path = format!("/tmp/conformance-{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.guest.make_directory(path.as_bytes(), 0o755, true, None).await.must("making a directory");
        path
    }

    pub(super) async fn start(&self, request: &ExecRequest) -> ProcessHandle {
        self.guest.exec(request).await.must("starting a process")
    }

    pub(super) async fn run(&self, request: &ExecRequest) -> Finished {
        collect(self.start(request).await).await
    }
}

/// A request for a command without more.
pub(super) fn command(words: &[&str]) -> ExecRequest {
    ExecRequest { command: words.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

/// A request for a shell script.
pub(super) fn shell(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

/// Reads a process to its end; checks that nothing comes after the end.
pub(super) async fn collect(mut handle: ProcessHandle) -> Finished {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = handle.events.next().await {
        match event {
            ProcessEvent::Stdout(data) => stdout.extend_from_slice(&data),
            ProcessEvent::Stderr(data) => stderr.extend_from_slice(&data),
            ProcessEvent::Lost(error) => panic!("the process was lost: {error}"),
            ProcessEvent::UpToDate => panic!("a reader of everything was told to have it all"),
            ProcessEvent::Exited(exit) => {
                assert!(handle.events.next().await.is_none(), "something came after the end");
                return Finished { stdout, stderr, exit };
            }
        }
    }
    panic!("the events ended without an exit")
}

/// A stream over pieces of data.
pub(super) fn stream_of(pieces: Vec<Result<Bytes, GuestError>>) -> microvm_ports::guest::ByteStream {
    Box::pin(futures::stream::iter(pieces))
}

/// All bytes of a stream.
pub(super) async fn gather(mut stream: microvm_ports::guest::ByteStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.must("reading a stream"));
    }
    all
}

/// Bytes that look random and are the same every time.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Ends the check if an error is not a refusal of a kind.
pub(super) fn refusal(error: &GuestError) -> ErrorKind {
    match error {
        GuestError::Refused { kind, message } => {
            assert!(!message.is_empty(), "a refusal without a reason");
            *kind
        }
        other => panic!("wrong error: {other}"),
    }
}

/// Runs every check over a guest of `harness`.
///
/// # Panics
/// If a check fails.
pub async fn run(harness: &dyn GuestHarness) {
    let mut suite = Suite::new("guest", harness.limit());
    let scene = Scene { guest: harness.guest().await, next: AtomicU64::new(1) };
    suite.check("it answers a ping and knows itself", answers(&scene)).await;
    suite.check("its system and health are told", system(&scene)).await;
    processes::run(&mut suite, &scene).await;
    files::run(&mut suite, &scene).await;
    archives::run(&mut suite, &scene).await;
    suite.check("a port where nothing listens is refused", port(&scene)).await;
    suite.check("the bench measures are there", measures(&scene)).await;
    suite.check("a closed channel says so everywhere", closed(harness)).await;
    suite.check("after all this it still answers", answers(&scene)).await;
    suite.finish();
}

async fn answers(scene: &Scene) {
    assert!(scene.guest.ping().await.must("pinging") > Duration::ZERO);
    let agent = scene.guest.agent();
    assert!(!agent.agent_version.is_empty() && !agent.kernel_release.is_empty(), "{agent:?}");
    assert_eq!(*scene.guest.closed().borrow(), None);
}

async fn system(scene: &Scene) {
    let info = scene.guest.system_info().await.must("asking for the system");
    assert_eq!(info.host_name, "conformance");
    assert!(
        info.vcpus > 0 && info.memory_total > info.memory_available && info.wall_clock_ms > 0,
        "{info:?}"
    );
    let health = scene.guest.health().await.must("asking for the health");
    for percent in [health.cpu_percent, health.memory_percent, health.disk_percent] {
        assert!((0.0..=100.0).contains(&percent), "{health:?}");
    }
    let processes = scene.guest.guest_processes().await.must("asking for processes");
    assert!(processes.iter().any(|process| process.pid == 1), "process 1 is missing: {processes:?}");
}

async fn port(scene: &Scene) {
    match scene.guest.connect_port(1).await {
        Err(error) => {
            refusal(&error);
        }
        Ok(_) => panic!("it connected"),
    }
}

async fn measures(scene: &Scene) {
    let Some(measuring) = scene.guest.measuring() else { return };
    let (to, from) = measuring.measure_channel(1 << 20, 1 << 20).await.must("measuring the channel");
    assert!(to > Duration::ZERO && from > Duration::ZERO, "{to:?} {from:?}");
    let times = measuring.measure_spawn("/bin/true", 3).await.must("measuring spawns");
    assert_eq!(times.len(), 3);
}

async fn closed(harness: &dyn GuestHarness) {
    let guest = harness.guest_to_close().await;
    let mut handle = guest.exec(&command(&["sleep", "600"])).await.must("starting a process");
    let mut closed = guest.closed();
    guest.close();
    let reason = closed.wait_for(Option::is_some).await.must("waiting for the end").clone();
    assert_eq!(reason, Some(CloseReason::Local));
    let error = guest.ping().await.must_fail("pinging over a closed channel");
    assert!(matches!(error, GuestError::Closed(_)), "wrong error: {error}");
    let error = guest.stat(b"/").await.must_fail("asking over a closed channel");
    assert!(matches!(error, GuestError::Closed(_)), "wrong error: {error}");
    match handle.events.next().await {
        Some(ProcessEvent::Lost(GuestError::Closed(_))) => {}
        other => panic!("the process was told as {other:?}"),
    }
}
