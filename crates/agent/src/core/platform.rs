//! The operating system, as far as the core needs it. One implementation per system, in a module of `crate::platform`.

use std::future::Future;
use std::io;
use std::sync::Arc;

use microvm_protocol::messages::{
    Exec, Exited, Firmware, GuestProcess, List, MakeDirectory, PathStyle, PullArchive, ReadFile, Remove,
    Rename, Reply, Share, Shutdown, System as SystemInfo, Terminal, Variable, Volume, Watch, WriteFile,
    Written,
};
use microvm_protocol::mux::StreamHandle;
use tokio::sync::oneshot;

use super::failure::AgentResult;

/// A whole operating system.
pub(crate) trait Platform: Programs + Files + System + Send + Sync + 'static {}

/// Settings of every command, which come with the identity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) environment: Vec<Variable>,
    /// Name or number of the user; empty: the administrator.
    pub(crate) user: String,
    /// Empty: the user's home.
    pub(crate) working_directory: String,
}

/// A program that was just started.
pub(crate) struct Started<P: Programs + ?Sized> {
    pub(crate) pid: u32,
    pub(crate) child: P::Child,
    /// Absent if no input was asked for.
    pub(crate) stdin: Option<P::Input>,
    pub(crate) stdout: P::Output,
    /// Absent for a program in a terminal, whose only output is `stdout`.
    pub(crate) stderr: Option<P::Output>,
    /// Fires when the program has ended.
    pub(crate) exited: oneshot::Receiver<Exited>,
}

/// Starts of programs.
pub(crate) trait Programs {
    /// A started program.
    type Child: Child;
    /// Our end of its standard input.
    type Input: Input;
    /// Our end of one of its outputs.
    type Output: Output;

    /// Starts a program. Blocks: called on a helper thread of the runtime.
    ///
    /// # Errors
    /// If there is no such program, user or directory, or the system refuses.
    fn start(&self, request: &Exec, defaults: &Defaults) -> AgentResult<Started<Self>>;

    /// Starts a program without streams, to measure a start. Blocks.
    ///
    /// # Errors
    /// As for [`Self::start`].
    fn start_bare(&self, request: &Exec, defaults: &Defaults) -> AgentResult<oneshot::Receiver<Exited>>;

    /// Command that runs a line of text in the system's shell.
    fn shell(&self, line: String) -> Vec<String>;

    /// Program that does nothing, to measure a start.
    fn idle_program(&self) -> &'static str;

    /// Looks for ended programs now. A hint: [`Self::report_ends`] finds them as well.
    fn look_for_ends(&self);

    /// Reports ends of programs until the agent ends.
    ///
    /// # Errors
    /// If ends cannot be observed.
    fn report_ends(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// A program that was started, and everything it has started itself.
pub(crate) trait Child: Send + Sync + 'static {
    /// Sends a signal, by its Linux number, to the program and what belongs to it.
    ///
    /// # Errors
    /// If there is no such signal here, or the system refuses.
    fn signal(&self, number: u32) -> AgentResult<()>;

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// If it has none.
    fn resize(&self, size: Terminal) -> AgentResult<()>;

    /// Kills it and everything it has started.
    fn kill_all(&self);

    /// Gives back what the program occupied. Called once it has ended; what it started may go on, and is out of reach
    /// from then on.
    fn release(&self);
}

/// Our end of a program's standard input.
pub(crate) trait Input: Send + Sync + 'static {
    /// Writes everything. Cancelling leaves an unknown part written.
    ///
    /// # Errors
    /// If nobody reads any more.
    fn write_all(&self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Bytes that stand for the end of input on a terminal, which stays open; `None` for a pipe, which is closed.
    fn end_mark(&self) -> Option<&'static [u8]>;
}

/// Our end of one output of a program.
pub(crate) trait Output: Send + Sync + 'static {
    /// Waits for bytes and reads them; 0: it is closed everywhere. Cancelling is safe: nothing is lost.
    ///
    /// # Errors
    /// If the output broke.
    fn read(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;

    /// Reads what is there, without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is there: what an ended program wrote was read whole then.
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Prepares for much output: fewer, larger exchanges.
    fn expect_much(&self);
}

/// Files, directories and archives. Functions that are not `async` block: the core calls them on a helper thread.
///
/// Paths are bytes in the syntax of [`Facts::path_style`].
pub(crate) trait Files {
    /// Owner of what is written.
    type Owner: Send + 'static;

    /// Resolves `user[:group]`; empty: the default user. Blocks.
    ///
    /// # Errors
    /// If the guest has no such user or group.
    fn owner(specification: &str, defaults: &Defaults) -> AgentResult<Self::Owner>;

    /// Sends the description of a file, then its content.
    ///
    /// # Errors
    /// If it cannot be read, or the stream ended.
    fn read(stream: &Arc<StreamHandle>, request: ReadFile) -> impl Future<Output = AgentResult<()>> + Send;

    /// Writes a whole file from the stream, or changes nothing.
    ///
    /// # Errors
    /// If it cannot be written, or the stream ended.
    fn write(
        stream: &Arc<StreamHandle>,
        request: WriteFile,
        owner: Option<Self::Owner>,
    ) -> impl Future<Output = AgentResult<Written>> + Send;

    /// Describes a path. Blocks.
    ///
    /// # Errors
    /// If nothing is there.
    fn stat(path: &[u8]) -> AgentResult<Reply>;

    /// Sends the entries below a directory.
    ///
    /// # Errors
    /// If it cannot be listed, or the stream ended.
    fn list(stream: &Arc<StreamHandle>, request: List) -> impl Future<Output = AgentResult<()>> + Send;

    /// Makes a directory. Blocks.
    ///
    /// # Errors
    /// If it exists, or cannot be made.
    fn make_directory(request: &MakeDirectory, owner: Option<Self::Owner>) -> AgentResult<()>;

    /// Renames within the guest. Blocks.
    ///
    /// # Errors
    /// If that cannot be.
    fn rename(request: &Rename) -> AgentResult<()>;

    /// Removes a file, or a directory. Blocks.
    ///
    /// # Errors
    /// If that cannot be.
    fn remove(request: &Remove) -> AgentResult<()>;

    /// SHA-256 of a file. Blocks.
    ///
    /// # Errors
    /// If it cannot be read.
    fn hash(path: &[u8]) -> AgentResult<Reply>;

    /// Reports changes below a path until the stream ends.
    ///
    /// # Errors
    /// Always, at last: that of the stream, or of the watch.
    fn watch(stream: &StreamHandle, request: Watch) -> impl Future<Output = AgentResult<()>> + Send;

    /// Unpacks a tar stream below a directory.
    ///
    /// # Errors
    /// If the archive is damaged or would leave the directory, or the stream ended.
    fn push_archive(
        stream: &Arc<StreamHandle>,
        path: Vec<u8>,
        owner: Option<Self::Owner>,
    ) -> impl Future<Output = AgentResult<Written>> + Send;

    /// Sends a path as a tar stream.
    ///
    /// # Errors
    /// If it cannot be read, or the stream ended.
    fn pull_archive(
        stream: &Arc<StreamHandle>,
        request: PullArchive,
    ) -> impl Future<Output = AgentResult<()>> + Send;

    /// Sends the changes of the guest's root against its image as a tar stream of a layer, all of one moment.
    ///
    /// # Errors
    /// As for [`Self::pull_archive`]; if the system has no such thing.
    fn pull_layer(stream: &Arc<StreamHandle>) -> impl Future<Output = AgentResult<()>> + Send;

    /// Sends the root of the guest's image as a tar stream, without what is mounted over it.
    ///
    /// # Errors
    /// As for [`Self::pull_archive`]; if the system has no such thing.
    fn pull_root(stream: &Arc<StreamHandle>, path: Vec<u8>) -> impl Future<Output = AgentResult<()>> + Send;
}

/// Facts of the guest that the handshake tells.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) kernel_release: String,
    /// Milliseconds from the kernel's start to the agent being ready.
    pub(crate) boot_ms: u64,
    pub(crate) path_style: PathStyle,
    pub(crate) firmware: Firmware,
}

/// Shares of processor, memory and disk in use, 0 to 100.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_percent: f64,
    pub(crate) memory_percent: f64,
    pub(crate) disk_percent: f64,
}

/// The guest as a system.
pub(crate) trait System {
    /// Facts for the handshake.
    fn facts(&self) -> &Facts;

    /// Returns true if the whole machine is the agent's. Beside other programs on a host, for tests, nothing of the
    /// system may be changed: the core calls none of the functions below that change it.
    fn owns_machine(&self) -> bool;

    /// Describes the system. Blocks.
    fn information(&self) -> SystemInfo;

    /// Measures the use since the last call. Blocks.
    fn usage(&self) -> Usage;

    /// All processes of the guest. Blocks.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn processes(&self) -> AgentResult<Vec<GuestProcess>>;

    /// Ends the guest: asks all programs to end, kills them after the grace, ends the machine.
    fn shut_down(&self, request: Shutdown) -> impl Future<Output = ()> + Send + 'static;

    /// Mixes 32 bytes into the random number generator; empty: nothing to do.
    ///
    /// # Errors
    /// Text of the problem. So do the other parts of the identity.
    fn add_entropy(&self, entropy: &[u8]) -> Result<(), String>;

    /// Sets the wall clock to nanoseconds since 1970.
    ///
    /// # Errors
    /// See [`Self::add_entropy`].
    fn set_clock(&self, nanoseconds: i64) -> Result<(), String>;

    /// Changes the host name; empty: nothing to do.
    ///
    /// # Errors
    /// See [`Self::add_entropy`].
    fn set_host_name(&self, name: &str) -> Result<(), String>;

    /// Changes the machine id; empty: nothing to do.
    ///
    /// # Errors
    /// See [`Self::add_entropy`].
    fn set_machine_id(&self, id: &str) -> Result<(), String>;

    /// Makes the default working directory if it is missing. A failure shows in the first command that runs in it.
    fn make_working_directory(&self, directory: &str);

    /// Mounts folders of the host.
    ///
    /// # Errors
    /// See [`Self::add_entropy`].
    fn mount_shares(&self, shares: Vec<Share>) -> impl Future<Output = Result<(), String>> + Send;

    /// Mounts disks of the machine.
    ///
    /// # Errors
    /// See [`Self::add_entropy`].
    fn mount_volumes(&self, volumes: Vec<Volume>) -> impl Future<Output = Result<(), String>> + Send;
}
