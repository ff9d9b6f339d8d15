//! The port's [`Guest`] over one channel.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::branch::InputProbe;
use microvm_ports::content::ContentStream;
use microvm_ports::guest::{
    ByteStream, CloseReason, Guest, GuestArchives, GuestExec, GuestFiles, GuestInfo, GuestMeasure, GuestPath,
    GuestPorts, GuestPower, Identity, PortConnection, ProcessHandle,
};
use microvm_ports::waiting::within;
use microvm_ports::{GuestError, Holes, PulledArchive, PushedArchive};
use microvm_protocol::messages::{MakeDirectory, Operation, Remove, Rename, Shutdown};
use microvm_types::ProcessId;
use microvm_types::exec::{ExecRequest, OutputOffsets, ProcessInfo};
use microvm_types::files::{FileList, FileOwner, FileStat, WriteOptions};
use microvm_types::guest::{AgentInfo, GuestHealth, GuestProcess, ShutdownMode, SystemInfo};
use tokio::sync::watch;

use crate::channel::Channel;
use crate::config::GuestConfig;
use crate::owners::Owners;
use crate::{exec, files, identity, system};

/// One guest over one channel.
pub(crate) struct SocketGuest {
    channel: Arc<Channel>,
    agent: AgentInfo,
    owners: Owners,
    config: GuestConfig,
}

impl SocketGuest {
    pub(crate) const fn new(
        channel: Arc<Channel>,
        agent: AgentInfo,
        owners: Owners,
        config: GuestConfig,
    ) -> Self {
        Self { channel, agent, owners, config }
    }

    /// Bounds a short request.
    async fn short<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = Result<T, GuestError>> + Send,
    ) -> Result<T, GuestError> {
        bounded(self.config.request_timeout, action, request).await
    }

    /// Bounds a request whose work grows with what is in the guest.
    async fn long<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = Result<T, GuestError>> + Send,
    ) -> Result<T, GuestError> {
        bounded(self.config.work_timeout(), action, request).await
    }
}

async fn bounded<T>(
    after: Duration,
    action: &'static str,
    request: impl Future<Output = Result<T, GuestError>> + Send,
) -> Result<T, GuestError> {
    within(after, request).await.unwrap_or(Err(GuestError::Timeout { action, after }))
}

#[async_trait]
impl Guest for SocketGuest {
    fn agent(&self) -> &AgentInfo {
        &self.agent
    }

    fn closed(&self) -> watch::Receiver<Option<CloseReason>> {
        self.channel.closed()
    }

    fn close(&self) {
        self.channel.close_with(CloseReason::Local);
    }

    async fn ping(&self) -> Result<Duration, GuestError> {
        self.short("answer a ping", self.channel.ping()).await
    }

    fn measuring(&self) -> Option<&dyn GuestMeasure> {
        Some(self)
    }
}

#[async_trait]
impl GuestPower for SocketGuest {
    async fn identify(&self, epoch: u64, identity: &Identity) -> Result<(), GuestError> {
        self.short("take its identity over", identity::push(&self.channel, epoch, identity)).await?;
        self.owners.identified(identity);
        Ok(())
    }

    async fn tell_time(&self) -> Result<(), GuestError> {
        self.short("set its clock", identity::tell_time(&self.channel)).await
    }

    fn expect_heartbeats(&self, expected: bool) {
        self.channel.expect_heartbeats(expected);
    }

    async fn hold_input(&self) -> InputProbe {
        self.channel.hold_input().await
    }

    async fn shutdown(&self, mode: ShutdownMode, grace: Duration) -> Result<(), GuestError> {
        let request = Shutdown {
            reboot: mode == ShutdownMode::Reboot,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        match self.short("begin to shut down", self.channel.command(Operation::Shutdown(request))).await {
            // A guest with nothing to end may be gone before its answer has left.
            Err(GuestError::Closed(CloseReason::EndOfStream)) => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl GuestExec for SocketGuest {
    async fn exec(&self, request: &ExecRequest) -> Result<ProcessHandle, GuestError> {
        self.short("start the command", exec::exec(&self.channel, request)).await
    }

    async fn attach(&self, process: &ProcessId, from: OutputOffsets) -> Result<ProcessHandle, GuestError> {
        self.short("attach to the process", exec::attach(&self.channel, process, from)).await
    }

    async fn read_output(
        &self,
        process: &ProcessId,
        from: OutputOffsets,
        follow: bool,
    ) -> Result<ProcessHandle, GuestError> {
        self.short("show the output", exec::read_output(&self.channel, process, from, follow)).await
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>, GuestError> {
        self.short("list its processes", exec::processes(&self.channel)).await
    }

    async fn signal(&self, process: &ProcessId, signal: u8) -> Result<(), GuestError> {
        self.short("signal the process", exec::signal(&self.channel, process, signal)).await
    }
}

#[async_trait]
impl GuestFiles for SocketGuest {
    async fn read_file(
        &self,
        path: &GuestPath,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, ContentStream), GuestError> {
        self.short("open the file", files::read(&self.channel, path, offset, length)).await
    }

    async fn write_file(
        &self,
        path: &GuestPath,
        options: &WriteOptions,
        data: ContentStream,
    ) -> Result<u64, GuestError> {
        // Numbers were always understood.
        let owner = options.owner.as_ref().filter(|owner| owner.numbers().is_none());
        // No limit for the whole, which may be of any size: each step of it has one.
        files::write(&self.channel, path, options, self.owners.named(owner)?, data).await
    }

    async fn stat(&self, path: &GuestPath) -> Result<FileStat, GuestError> {
        self.short("look at the path", files::stat(&self.channel, path)).await
    }

    async fn list(&self, path: &GuestPath, depth: u32) -> Result<FileList, GuestError> {
        self.channel.step("list the directory", files::list(&self.channel, path, depth)).await
    }

    async fn make_directory(
        &self,
        path: &GuestPath,
        mode: u32,
        parents: bool,
        owner: Option<&FileOwner>,
    ) -> Result<(), GuestError> {
        let owner = self.owners.named(owner)?;
        let request = MakeDirectory { path: path.to_vec(), mode, parents, owner };
        self.short("make the directory", self.channel.command(Operation::MakeDirectory(request))).await
    }

    async fn rename(&self, from: &GuestPath, to: &GuestPath) -> Result<(), GuestError> {
        let request = Rename { from: from.to_vec(), to: to.to_vec() };
        self.short("rename", self.channel.command(Operation::Rename(request))).await
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<(), GuestError> {
        let request = Remove { path: path.to_vec(), recursive };
        self.long("remove the path", self.channel.command(Operation::Remove(request))).await
    }

    async fn watch(&self, path: &GuestPath, recursive: bool) -> Result<files::Changes, GuestError> {
        self.short("watch the path", files::watch(&self.channel, path, recursive)).await
    }
}

#[async_trait]
impl GuestArchives for SocketGuest {
    async fn push_archive(
        &self,
        path: &GuestPath,
        owner: Option<&FileOwner>,
        data: ByteStream,
    ) -> Result<PushedArchive, GuestError> {
        files::push_archive(&self.channel, path, self.owners.named(owner)?, data).await
    }

    async fn pull_archive(
        &self,
        path: &GuestPath,
        exclude: &[Vec<u8>],
        holes: Holes,
    ) -> Result<PulledArchive, GuestError> {
        self.short("pack the path", files::pull_archive(&self.channel, path, exclude, holes)).await
    }

    async fn pull_root(&self, path: &GuestPath) -> Result<PulledArchive, GuestError> {
        self.short("pack its root", files::pull_root(&self.channel, path)).await
    }

    async fn pull_layer(&self) -> Result<PulledArchive, GuestError> {
        // Everything that waits in the guest's memory is written first.
        self.long("pack its changes", files::pull_layer(&self.channel)).await
    }

    async fn hash_file(&self, path: &GuestPath) -> Result<String, GuestError> {
        // Large files take their time.
        self.long("hash the file", files::hash(&self.channel, path)).await
    }
}

#[async_trait]
impl GuestPorts for SocketGuest {
    async fn connect_port(&self, port: u16) -> Result<PortConnection, GuestError> {
        self.short("connect to its port", system::connect_port(&self.channel, port)).await
    }
}

#[async_trait]
impl GuestInfo for SocketGuest {
    async fn system_info(&self) -> Result<SystemInfo, GuestError> {
        self.short("describe itself", system::system_info(&self.channel)).await
    }

    async fn guest_processes(&self) -> Result<Vec<GuestProcess>, GuestError> {
        self.short("list all its processes", system::guest_processes(&self.channel)).await
    }

    async fn health(&self) -> Result<GuestHealth, GuestError> {
        self.short("say how it is", system::health(&self.channel)).await
    }
}

#[async_trait]
impl GuestMeasure for SocketGuest {
    async fn measure_channel(
        &self,
        to_guest: u64,
        from_guest: u64,
    ) -> Result<(Duration, Duration), GuestError> {
        self.long("measure", system::measure_channel(&self.channel, to_guest, from_guest)).await
    }

    async fn measure_spawn(&self, program: &str, rounds: u32) -> Result<Vec<Duration>, GuestError> {
        self.long("measure", system::measure_spawn(&self.channel, program, rounds)).await
    }
}
