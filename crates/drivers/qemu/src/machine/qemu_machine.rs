//! One living QEMU machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_confinement::ProcessRecord;
use microvm_ports::branch::IncomingState;
use microvm_ports::guest::GuestEndpoint;
use microvm_ports::hypervisor::{
    Balloon, Machine, MachineCounters, MachineExit, MachineRecord, MachineState,
};
use microvm_ports::{Brancher, LaunchError, MachineError, waiting};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::record::Record;
use super::watcher::{EXIT_NOTE_DEADLINE, Watched, wait_for_note, watch_over};
use crate::branch::load;
use crate::branch::{Branching, Saving};
use crate::config::QemuConfig;
use crate::control::qmp::Qmp;
use crate::control::socket;
use crate::memory::boot_files;
use crate::process;
use crate::process::command_line::{AGENT_SOCKET, BOOT_PATHS, QMP_SOCKET};
use crate::process::usage;
use crate::process::users::UserLease;

pub(crate) struct QemuMachine {
    directory: Utf8PathBuf,
    /// Its side of branching; `None` for machines of the first servers, which recorded too little.
    branching: Option<Branching>,
    process: ProcessRecord,
    version: String,
    user: UserLease,
    qmp: Arc<Qmp>,
    state: watch::Receiver<MachineState>,
    /// Changes whenever the guest has given up memory or taken some.
    ballooned: watch::Receiver<()>,
    /// Set before `kill`, so that the exit is reported as [`MachineExit::Killed`].
    killed: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        // The machine lives on; this process stops following it.
        self.watcher.abort();
    }
}

impl QemuMachine {
    /// Connects to a QEMU process that runs (or is starting).
    pub(crate) async fn attach(
        config: &QemuConfig,
        directory: &Utf8Path,
        process: ProcessRecord,
        version: String,
        user: UserLease,
        saving: Option<Saving>,
    ) -> Result<Self, LaunchError> {
        let failed = |error: std::io::Error| LaunchError::Process {
            step: "watching its process",
            detail: error.to_string(),
        };
        let descriptor = process.vmm.open().map_err(failed)?.ok_or_else(|| process::died(directory))?;
        let ended = descriptor.ended().map_err(failed)?;
        tokio::pin!(ended);
        let connect = async {
            let stream = socket::connect(directory, QMP_SOCKET).await?;
            Qmp::open(stream, config.command_deadline).await
        };
        let (qmp, events) = tokio::select! {
            biased;
            connected = waiting::within(config.start_deadline, connect) => match connected {
                Ok(Ok(connected)) => connected,
                // A closed socket means a dead QEMU; wait for its last words to be noted.
                Ok(Err(error)) => {
                    return Err(match tokio::time::timeout(EXIT_NOTE_DEADLINE, &mut ended).await {
                        Ok(_) => {
                            wait_for_note(&process).await;
                            process::died(directory)
                        }
                        Err(_) => LaunchError::Process { step: "connecting to its control socket", detail: error.to_string() },
                    });
                }
                Err(_) => return Err(LaunchError::Timeout { step: "greeting", after: config.start_deadline }),
            },
            _ = &mut ended => {
                wait_for_note(&process).await;
                return Err(process::died(directory));
            }
        };
        let qmp = Arc::new(qmp);
        let status = qmp.call("tell its status", "query-status", json!({})).await.map_err(|error| {
            LaunchError::Process { step: "asking for its status", detail: error.to_string() }
        })?;
        let first = match (status["running"].as_bool(), status["status"].as_str()) {
            (Some(true), _) => MachineState::Running,
            // Only a full disk stops it so: see `werror` on the command line.
            (_, Some("io-error")) => MachineState::DiskFull,
            _ => MachineState::Paused,
        };
        let (publish, state) = watch::channel(first);
        let (tell_ballooned, ballooned) = watch::channel(());
        let killed = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn(watch_over(Watched {
            directory: directory.to_owned(),
            process: process.clone(),
            events,
            publish,
            ballooned: tell_ballooned,
            killed: Arc::clone(&killed),
            // A second future: the first one was borrowed by the select above.
            descriptor_ended: descriptor.ended().map_err(failed)?,
        }));
        let branching = saving.map(|saving| Branching {
            qmp: Arc::clone(&qmp),
            state: state.clone(),
            process: process.vmm,
            saving,
            write_tracking: config.write_tracking,
        });
        Ok(Self {
            directory: directory.to_owned(),
            branching,
            process,
            version,
            user,
            qmp,
            state,
            ballooned,
            killed,
            watcher,
        })
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Notes the VM that a standby VMM was taken for.
    pub(crate) fn is_now(&mut self, saving: Saving) {
        if let Some(branching) = &mut self.branching {
            branching.saving = saving;
        }
    }

    /// Loads the state of another machine; the processors are paused before and after.
    /// Meanwhile, before its devices are loaded, its disks are made ready by `disks`.
    pub(crate) async fn load(
        &self,
        state: &IncomingState,
        disks: impl Future<Output = Result<(), LaunchError>> + Send,
    ) -> Result<(), LaunchError> {
        let load = async {
            let branching = self.branching.as_ref();
            let branching = branching
                .ok_or_else(|| LaunchError::BadState("this machine was not made for it".to_owned()))?;
            // A part that this version does not know would be left out.
            let device_state = state
                .parts
                .as_single()
                .ok_or_else(|| LaunchError::BadState("it has other parts than a device state".to_owned()))?;
            tokio::try_join!(disks, load::load_pages(branching, state))?;
            load::load_devices(&branching.qmp, device_state).await
        };
        let Err(failed) = load.await else { return Ok(()) };
        // QEMU ends by itself when it cannot load a state; its last words tell why.
        let mut state = self.state.clone();
        let ended = state.wait_for(|now| matches!(now, MachineState::Exited(_)));
        match tokio::time::timeout(EXIT_NOTE_DEADLINE / 4, ended).await {
            Ok(Ok(now)) => match &*now {
                MachineState::Exited(exit) => Err(LaunchError::BadState(exit.to_string())),
                _ => Err(failed),
            },
            _ => Err(failed),
        }
    }

    fn exit(&self) -> Option<MachineExit> {
        match &*self.state.borrow() {
            MachineState::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    async fn call(
        &self,
        action: &'static str,
        command: &str,
        arguments: Value,
    ) -> Result<Value, MachineError> {
        match self.exit() {
            Some(exit) => Err(MachineError::Exited(exit)),
            None => self.qmp.call(action, command, arguments).await,
        }
    }

    /// Waits until the state is `wanted`; QEMU's event comes right after its answer.
    async fn reached(&self, action: &'static str, wanted: &MachineState) -> Result<(), MachineError> {
        let mut state = self.state.clone();
        let after = Duration::from_secs(5);
        let reached = state.wait_for(|now| now == wanted || matches!(now, MachineState::Exited(_)));
        match waiting::within(after, reached).await {
            Ok(Ok(now)) => match &*now {
                MachineState::Exited(exit) => Err(MachineError::Exited(exit.clone())),
                _ => Ok(()),
            },
            // It stopped by itself before it could be told to.
            Err(_) if *self.state.borrow() == MachineState::DiskFull => Ok(()),
            Ok(Err(_)) => {
                Err(MachineError::Refused { action, detail: "nobody watches it any more".to_owned() })
            }
            Err(_) => Err(MachineError::Timeout { action, after }),
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn record(&self) -> MachineRecord {
        let branching = self.branching.as_ref();
        let saving = branching.map(|branching| branching.saving.clone());
        Record::new(self.process.clone(), self.version.clone(), self.user.user, saving).store()
    }

    fn endpoint(&self) -> GuestEndpoint {
        GuestEndpoint::UnixSocket(self.directory.join(AGENT_SOCKET))
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.state.clone()
    }

    async fn resume(&self) -> Result<(), MachineError> {
        let mut state = self.state.clone();
        let was_full = *state.borrow_and_update() == MachineState::DiskFull;
        self.call("resume", "cont", json!({})).await?;
        if was_full {
            // It runs, if only until the same write fails again.
            let after = Duration::from_secs(5);
            return match waiting::within(after, state.changed()).await {
                Ok(_) => self.exit().map_or(Ok(()), |exit| Err(MachineError::Exited(exit))),
                Err(_) => Err(MachineError::Timeout { action: "resume", after }),
            };
        }
        self.reached("resume", &MachineState::Running).await
    }

    async fn pause(&self) -> Result<(), MachineError> {
        if *self.state.borrow() == MachineState::DiskFull {
            return Ok(());
        }
        self.call("pause", "stop", json!({})).await?;
        self.reached("pause", &MachineState::Paused).await
    }

    async fn kill(&self, deadline: Duration) -> Result<MachineExit, MachineError> {
        let mut state = self.state.clone();
        if let Some(exit) = self.exit() {
            return Ok(exit);
        }
        self.killed.store(true, Ordering::Release);
        let exited = async {
            let now = state.wait_for(|now| matches!(now, MachineState::Exited(_))).await;
            match now.as_deref() {
                Ok(MachineState::Exited(exit)) => exit.clone(),
                _ => MachineExit::Killed,
            }
        };
        tokio::pin!(exited);
        // `quit` lets QEMU close its disks in order; the signal is for one that does not answer.
        let polite = async {
            let _ = self.qmp.call("quit", "quit", json!({})).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            exit = &mut exited => return Ok(exit),
            () = polite => {}
            () = tokio::time::sleep(deadline / 2) => {}
        }
        let after = deadline;
        self.process
            .vmm
            .end(deadline / 2)
            .await
            .map_err(|_| MachineError::Timeout { action: "end", after })?;
        tokio::time::timeout(EXIT_NOTE_DEADLINE * 2, exited)
            .await
            .map_err(|_| MachineError::Timeout { action: "end", after })
    }

    fn booted(&self) {
        let process = self.process.vmm;
        // In the background: the guest's first answer does not wait for it. It takes milliseconds and ends by itself.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = boot_files::release(process, &BOOT_PATHS) {
                tracing::debug!(pid = process.pid, %error, "kernel and initial file system stay in the VMM's memory");
            }
        });
    }

    async fn counters(&self) -> Result<MachineCounters, MachineError> {
        let stats = self.call("tell its block statistics", "query-blockstats", json!({})).await?;
        let mut counters = MachineCounters::default();
        for disk in stats.as_array().into_iter().flatten() {
            let count = |name: &str| disk["stats"][name].as_u64().unwrap_or(0);
            counters.disk_read_bytes += count("rd_bytes");
            counters.disk_written_bytes += count("wr_bytes");
            counters.disk_reads += count("rd_operations");
            counters.disk_writes += count("wr_operations");
        }
        let pid = self.process.vmm.pid;
        let usage = tokio::task::spawn_blocking(move || usage::process_usage(pid)).await;
        // Its process may have ended since: the counters of its disks are still true.
        if let Ok(Ok((cpu_ms, pss, rss))) = usage {
            counters.cpu_ms = cpu_ms;
            counters.memory_pss = pss;
            counters.memory_rss = rss;
        }
        Ok(counters)
    }

    fn brancher(&self) -> Option<&dyn Brancher> {
        self.branching.as_ref().map(|branching| branching as &dyn Brancher)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        Some(self)
    }
}

#[async_trait]
impl Balloon for QemuMachine {
    async fn resize(&self, memory_mib: u32) -> Result<(), MachineError> {
        self.call("resize its balloon", "balloon", json!({ "value": u64::from(memory_mib) << 20 }))
            .await
            .map(|_| ())
    }

    async fn reached(&self, memory_mib: u32, within: Duration) -> Result<bool, MachineError> {
        self.balloon_is(|actual| actual == memory_mib, within).await
    }

    async fn followed(&self, from_mib: u32, within: Duration) -> Result<bool, MachineError> {
        self.balloon_is(|actual| actual != from_mib, within).await
    }

    async fn actual_mib(&self) -> Result<u32, MachineError> {
        let answer = self.call("tell the size of its balloon", "query-balloon", json!({})).await?;
        let bytes = answer["actual"].as_u64().unwrap_or(0);
        Ok(u32::try_from(bytes >> 20).unwrap_or(u32::MAX))
    }
}

impl QemuMachine {
    /// Waits until its guest uses as many MiB as wanted.
    async fn balloon_is(
        &self,
        wanted: impl Fn(u32) -> bool + Send,
        within: Duration,
    ) -> Result<bool, MachineError> {
        let mut changes = self.ballooned.clone();
        let reached = async {
            loop {
                // Marked before the question: a change after the answer is not missed.
                changes.borrow_and_update();
                if wanted(self.actual_mib().await?) {
                    return Ok(true);
                }
                if changes.changed().await.is_err() {
                    return Ok(false);
                }
            }
        };
        waiting::within(within, reached).await.unwrap_or(Ok(false))
    }
}
