//! The channel to a guest: what core and the edges need from the guest agent.
//!
//! The guest is hostile after its first byte. A driver of this port bounds sizes, streams, rates and memory, and turns
//! anything it does not understand into [`GuestError::Protocol`], never into a panic or a wait without end.

pub mod archive;
pub mod content;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use camino::Utf8PathBuf;
use futures::Stream;
use microvm_types::exec::{ExecRequest, ExitStatus, OutputOffsets, ProcessInfo, TerminalSize};
use microvm_types::files::{FileList, FileOwner, FileStat, WatchEvent, WriteOptions};
use microvm_types::guest::{AgentInfo, GuestHealth, GuestProcess, ShutdownMode, SystemInfo};
use microvm_types::{ErrorKind, ProcessId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::archive::{Holes, PulledArchive, PushedArchive};
use self::content::ContentStream;

/// A guest path: bytes, absolute unless said otherwise; no NUL.
pub type GuestPath = [u8];

/// Bulk data in order. The producer is held up when the consumer does not take it.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, GuestError>> + Send>>;

/// Events of one process in order; see [`ProcessEvent`].
pub type ProcessEvents = Pin<Box<dyn Stream<Item = ProcessEvent> + Send>>;

/// Bytes that are on their way into the machine through its channel: zero means that there are none. The guest that gives
/// it has stopped sending for as long as it lives.
pub type InputProbe = Box<dyn Fn() -> u64 + Send + Sync>;

/// How the channel of a machine is reached from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestEndpoint {
    /// A unix socket that carries the byte stream as it is (virtio-serial).
    UnixSocket(Utf8PathBuf),
    /// A unix socket that first wants `CONNECT <port>` (hybrid vsock of Firecracker and Cloud Hypervisor).
    HybridVsock {
        /// Path of the socket.
        path: Utf8PathBuf,
        /// Port the agent listens on.
        port: u32,
    },
}

/// A shared folder as the guest mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestShare {
    /// What the machine calls it.
    pub tag: String,
    /// Absolute path in the guest.
    pub target: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// What a VM is told about itself at the start of every epoch: after a boot, a fork or a restore. The wall clock is
/// taken when it is sent. Values of `environment` may be secrets: they are never logged.
#[derive(Clone, Default)]
pub struct Identity {
    /// Host name.
    pub host_name: String,
    /// 32 lower-case hexadecimal characters for `/etc/machine-id`.
    pub machine_id: String,
    /// Seed for the guest's random number generator.
    pub entropy: [u8; 32],
    /// Variables of every command.
    pub environment: Vec<(String, String)>,
    /// Commands to run once, in order, each by `sh -c`; empty after an adoption.
    pub start_commands: Vec<String>,
    /// Folders to mount, before the start commands run; only after a boot.
    pub shares: Vec<GuestShare>,
    /// Default user for commands, from the image; empty: root.
    pub user: String,
    /// Default working directory for commands, from the image; empty: the user's home.
    pub working_directory: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("host_name", &self.host_name)
            .field("variables", &self.environment.len())
            .field("start_commands", &self.start_commands.len())
            .finish_non_exhaustive()
    }
}

/// Why a guest could not do what was asked, or could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// The agent did what was asked of it and failed: no such file, no such user …
    #[error("{message}")]
    Refused {
        /// The class of the failure as the agent gave it.
        kind: ErrorKind,
        /// What the agent says, limited in length and cleaned of control characters.
        message: String,
    },
    /// The channel is closed; nothing more will come from this guest in this epoch.
    #[error("the channel to the guest is closed: {0}")]
    Closed(CloseReason),
    /// The guest did not answer in time.
    #[error("the guest did not {action} within {after:?}")]
    Timeout {
        /// What was asked of it.
        action: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The guest broke the rules of the protocol; the channel is closed with it.
    #[error("the guest broke the channel protocol: {0}")]
    Protocol(String),
    /// The caller's own data stream failed in the middle of a transfer; the guest keeps nothing of it.
    #[error("the data to send could not be read: {0}")]
    Source(String),
    /// The channel's socket could not be reached.
    #[error("the channel of the guest cannot be reached: {0}")]
    Unreachable(String),
}

impl GuestError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Closed(_) | Self::Unreachable(_) => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Protocol(_) => ErrorKind::Internal,
            Self::Source(_) => ErrorKind::Invalid,
        }
    }
}

/// Why a channel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The machine or the guest closed it.
    EndOfStream,
    /// No heartbeat was answered for this long.
    HeartbeatLost(Duration),
    /// The guest broke the protocol.
    Protocol(String),
    /// This side closed it on purpose.
    Local,
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EndOfStream => formatter.write_str("the machine closed it"),
            Self::HeartbeatLost(after) => {
                write!(formatter, "the agent did not answer a heartbeat for {after:?}")
            }
            Self::Protocol(what) => write!(formatter, "the guest broke the protocol: {what}"),
            Self::Local => formatter.write_str("it was closed on request"),
        }
    }
}

/// What a process of the guest does.
#[derive(Debug, Clone)]
pub enum ProcessEvent {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// It ended; all of its output came before. Nothing comes after.
    Exited(ExitStatus),
    /// All that was asked for has come, and the process lives on: the end of a [`Guest::read_output`] that does not
    /// follow. Nothing comes after.
    UpToDate,
    /// The channel was lost; the process may live on and can be attached to again. Nothing comes after.
    Lost(GuestError),
}

/// What can be sent to a process.
#[derive(Debug, Clone)]
pub enum ProcessInput {
    /// Bytes for its standard input, or typed at its terminal.
    Stdin(Bytes),
    /// No more standard input.
    CloseStdin,
    /// Its terminal has a new size.
    Resize(TerminalSize),
    /// A signal for its process group (1 to 64).
    Signal(u8),
}

/// A started process with its streams. Dropping it detaches; the process lives on, held up when its output buffer is
/// full unless it was started detached.
pub struct ProcessHandle {
    /// Our id for it.
    pub id: ProcessId,
    /// Its number in the guest.
    pub pid: u32,
    /// Offset of the first byte of standard output that will come.
    pub stdout_offset: u64,
    /// Offset of the first byte of standard error that will come.
    pub stderr_offset: u64,
    /// What it does.
    pub events: ProcessEvents,
    /// What it is sent.
    pub input: Arc<dyn ProcessWriter>,
}

impl std::fmt::Debug for ProcessHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ProcessHandle")
            .field("id", &self.id)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// The sending side of a process.
#[async_trait]
pub trait ProcessWriter: Send + Sync {
    /// Sends one input, in order; waits while the process does not read. Input for a process that has ended is dropped.
    async fn send(&self, input: ProcessInput) -> Result<(), GuestError>;
}

/// A two-way byte stream to a port inside the guest.
pub struct PortConnection {
    /// Bytes from the guest.
    pub incoming: ByteStream,
    /// Bytes to the guest; dropping it ends that direction.
    pub outgoing: tokio::sync::mpsc::Sender<Bytes>,
}

/// Opens channels.
#[async_trait]
pub trait GuestConnector: Send + Sync {
    /// Connects, shakes hands with `epoch`, pushes `identity` and waits until the agent has confirmed every part.
    /// A machine that is still booting is waited for.
    ///
    /// # Errors
    /// [`GuestError::Timeout`] when `deadline` passes; [`GuestError::Refused`] when a part was not confirmed, of kind
    /// [`ErrorKind::Conflict`] when `epoch` is not newer than the newest the guest has confirmed.
    async fn connect(
        &self,
        endpoint: &GuestEndpoint,
        epoch: u64,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError>;
}

/// One guest over one channel in one epoch. All methods may be called at the same time and do not wait for each other.
#[async_trait]
pub trait Guest: Send + Sync {
    /// What the agent said of itself.
    fn agent(&self) -> &AgentInfo;

    /// Becomes `Some` when the channel ends, with the reason.
    fn closed(&self) -> watch::Receiver<Option<CloseReason>>;

    /// Gives a running guest another identity, that of `epoch`, and waits until the agent has confirmed every part.
    ///
    /// # Errors
    /// [`GuestError::Refused`] when a part was not confirmed, or `epoch` is not newer than the newest the guest has
    /// confirmed ([`ErrorKind::Conflict`]): the guest is then not to be used.
    async fn identify(&self, epoch: u64, identity: &Identity) -> Result<(), GuestError>;

    /// Sets the guest's wall clock to the host's. A guest's clocks stand still with its machine, so it is told the time
    /// whenever it runs again in the same epoch; an identity has the time with it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] from an agent that is older than this request.
    async fn tell_time(&self) -> Result<(), GuestError>;

    /// Stops expecting heartbeats (the machine is going to stand still), or expects them again.
    fn expect_heartbeats(&self, expected: bool);

    /// Stops sending until the answer is dropped, and tells how many bytes are still on their way to the machine: what
    /// arrives while a machine's state is taken would be in one half of it only.
    async fn hold_input(&self) -> InputProbe;

    /// Ends the channel from this side.
    fn close(&self);

    /// One empty round trip; returns how long it took.
    async fn ping(&self) -> Result<Duration, GuestError>;

    /// Starts a process. "Could not be started" (no such program, user, directory) is [`GuestError::Refused`]; a
    /// process that ran and failed is an [`ExitStatus`].
    async fn exec(&self, request: &ExecRequest) -> Result<ProcessHandle, GuestError>;

    /// Takes the output of a process up again from an offset. A reader that was attached before is detached.
    async fn attach(&self, process: &ProcessId, from: OutputOffsets) -> Result<ProcessHandle, GuestError>;

    /// Looks at the output that is kept of a process, beside whoever takes it: neither is disturbed, and the process is not
    /// held up. With `follow` it goes on until the process ends, else to what there was at this moment. Input is ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] from an agent that is older than this request. If the process writes faster than the
    /// output is taken the events end with [`ProcessEvent::Lost`] and how much was missed.
    async fn read_output(
        &self,
        process: &ProcessId,
        from: OutputOffsets,
        follow: bool,
    ) -> Result<ProcessHandle, GuestError>;

    /// Processes started through the agent that are still known.
    async fn processes(&self) -> Result<Vec<ProcessInfo>, GuestError>;

    /// Sends a signal (1 to 64) to a process group started through the agent.
    async fn signal(&self, process: &ProcessId, signal: u8) -> Result<(), GuestError>;

    /// Reads a file from `offset`, at most `length` bytes (`None`: to its end), with its holes.
    async fn read_file(
        &self,
        path: &GuestPath,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, ContentStream), GuestError>;

    /// Writes a whole file: to a temporary name beside it, then renamed into place when `data` has ended without error.
    /// `data` is taken to its end. Returns the number of bytes, holes counted in full, which the guest has confirmed.
    async fn write_file(
        &self,
        path: &GuestPath,
        options: &WriteOptions,
        data: ContentStream,
    ) -> Result<u64, GuestError>;

    /// What is at a path; symbolic links are not followed.
    async fn stat(&self, path: &GuestPath) -> Result<FileStat, GuestError>;

    /// Entries of a directory down to `depth` levels (1: its own), at most 100,000; whether that is all is said.
    async fn list(&self, path: &GuestPath, depth: u32) -> Result<FileList, GuestError>;

    /// Makes a directory, with parents if asked; what is made belongs to `owner` (`None`: root).
    async fn make_directory(
        &self,
        path: &GuestPath,
        mode: u32,
        parents: bool,
        owner: Option<&FileOwner>,
    ) -> Result<(), GuestError>;

    /// Renames within the guest.
    async fn rename(&self, from: &GuestPath, to: &GuestPath) -> Result<(), GuestError>;

    /// Removes a file, or a directory with all that is in it if `recursive`.
    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<(), GuestError>;

    /// Reports changes below a path until dropped.
    async fn watch(
        &self,
        path: &GuestPath,
        recursive: bool,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<WatchEvent, GuestError>> + Send>>, GuestError>;

    /// Unpacks a tar stream below a directory (made if missing), FIFOs and devices too. Entries that would leave it are
    /// refused; what the guest cannot make is left out. All of it belongs to `owner` (`None`: as the archive says). `data`
    /// is taken to its end.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] from an agent that is older than owners, unless it is root.
    async fn push_archive(
        &self,
        path: &GuestPath,
        owner: Option<&FileOwner>,
        data: ByteStream,
    ) -> Result<PushedArchive, GuestError>;

    /// Packs a file or directory as a tar stream (pax, names relative to the path's parent), FIFOs and devices too.
    /// `exclude`: absolute paths left out with all below them. A guest that cannot tell holes as asked packs zeros.
    async fn pull_archive(
        &self,
        path: &GuestPath,
        exclude: &[Vec<u8>],
        holes: Holes,
    ) -> Result<PulledArchive, GuestError>;

    /// Packs the directory `path` as the root of an image, as a tar stream (pax, names relative to `path`): all that is on
    /// its file system, and nothing that is mounted over it. Special files, hard links, extended attributes and times come
    /// exactly; sockets, which mean nothing without their owner, and what the agent itself wrote into `/etc/hosts` do not.
    async fn pull_root(&self, path: &GuestPath) -> Result<PulledArchive, GuestError>;

    /// Connects to a TCP port on the guest's loopback.
    async fn connect_port(&self, port: u16) -> Result<PortConnection, GuestError>;

    /// SHA-256 of a file, computed in the guest (slow under emulation; only on request).
    async fn hash_file(&self, path: &GuestPath) -> Result<String, GuestError>;

    /// The guest as a system.
    async fn system_info(&self) -> Result<SystemInfo, GuestError>;

    /// All processes of the guest.
    async fn guest_processes(&self) -> Result<Vec<GuestProcess>, GuestError>;

    /// How the guest is doing.
    async fn health(&self) -> Result<GuestHealth, GuestError>;

    /// Asks the guest to end: processes get SIGTERM, `grace` later SIGKILL; then sync and power off. Returns when the
    /// agent has begun; the machine's exit tells the end.
    async fn shutdown(&self, mode: ShutdownMode, grace: Duration) -> Result<(), GuestError>;

    /// Measures the channel itself: sends `to_guest` bytes that the agent throws away, then receives `from_guest`
    /// bytes that it makes up; returns the two times. For `microvm bench`.
    async fn measure_channel(
        &self,
        to_guest: u64,
        from_guest: u64,
    ) -> Result<(Duration, Duration), GuestError>;

    /// Measures, inside the guest and by the agent's clock, `rounds` times fork + exec + wait of `/bin/true` (or the
    /// given program). For `microvm bench`.
    async fn measure_spawn(&self, program: &str, rounds: u32) -> Result<Vec<Duration>, GuestError>;
}
