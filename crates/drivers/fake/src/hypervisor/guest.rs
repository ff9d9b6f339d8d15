//! One channel to a fake guest.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use microvm_ports::GuestError;
use microvm_ports::branch::InputProbe;
use microvm_ports::guest::{
    CloseReason, Guest, GuestInfo, GuestMeasure, GuestPorts, GuestPower, Identity, PortConnection,
};
use microvm_ports::hypervisor::{Machine, MachineExit, MachineState};
use microvm_types::ErrorKind;
use microvm_types::exec::ExecRequest;
use microvm_types::guest::{AgentInfo, GuestHealth, GuestProcess, ShutdownMode, SystemInfo};
use tokio::sync::watch;

use crate::guest::echo;
use crate::guest::system::{GuestSystem, close, wait_closed};
use crate::guest::tree::refused;
use crate::hypervisor::machine::FakeMachine;
use crate::script::{Operation, Script, Verdict};

/// A guest of a [`FakeMachine`].
#[derive(Debug)]
pub struct FakeGuest {
    agent: AgentInfo,
    machine: Arc<FakeMachine>,
    pub(crate) channel: watch::Sender<Option<CloseReason>>,
    script: Script,
}

impl FakeGuest {
    pub(crate) const fn new(
        agent: AgentInfo,
        machine: Arc<FakeMachine>,
        channel: watch::Sender<Option<CloseReason>>,
        script: Script,
    ) -> Self {
        Self { agent, machine, channel, script }
    }

    /// Waits until the machine runs; ends when the channel does.
    pub(crate) async fn system(&self) -> Result<&Arc<GuestSystem>, GuestError> {
        let mut closed = self.channel.subscribe();
        let mut state = self.machine.state();
        tokio::select! {
            biased;
            reason = wait_closed(&mut closed) => Err(GuestError::Closed(reason)),
            _ = state.wait_for(|state| *state == MachineState::Running) => Ok(&self.machine.system),
        }
    }

    pub(crate) async fn ask(&self, operation: Operation) -> Result<Verdict, GuestError> {
        match self.script.ask(operation).await {
            Verdict::Fail => Err(refused(ErrorKind::Internal, "a fault was planned here")),
            go => Ok(go),
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Guest for FakeGuest {
    fn agent(&self) -> &AgentInfo {
        &self.agent
    }

    fn closed(&self) -> watch::Receiver<Option<CloseReason>> {
        self.channel.subscribe()
    }

    fn close(&self) {
        close(&self.channel, CloseReason::Local);
    }

    async fn ping(&self) -> Result<Duration, GuestError> {
        let begun = Instant::now();
        let verdict = self.ask(Operation::Ping).await?;
        self.system().await?;
        verdict.finish().await;
        Ok(begun.elapsed())
    }

    fn measuring(&self) -> Option<&dyn GuestMeasure> {
        Some(self)
    }
}

#[async_trait]
impl GuestPower for FakeGuest {
    async fn identify(&self, epoch: u64, identity: &Identity) -> Result<(), GuestError> {
        let verdict = self.ask(Operation::Identify).await?;
        self.system().await?.set_identity(epoch, identity)?;
        verdict.finish().await;
        Ok(())
    }

    async fn tell_time(&self) -> Result<(), GuestError> {
        let verdict = self.ask(Operation::TellTime).await?;
        self.system().await?;
        verdict.finish().await;
        Ok(())
    }

    fn expect_heartbeats(&self, _expected: bool) {}

    async fn hold_input(&self) -> InputProbe {
        Box::new(|| 0)
    }

    async fn shutdown(&self, mode: ShutdownMode, _grace: Duration) -> Result<(), GuestError> {
        let verdict = self.ask(Operation::Shutdown).await?;
        let system = self.system().await?;
        for process in system.processes() {
            process.signal(15);
        }
        system.wants_end.send_replace(Some(match mode {
            ShutdownMode::PowerOff => MachineExit::GuestShutdown,
            ShutdownMode::Reboot => MachineExit::GuestReset,
        }));
        verdict.finish().await;
        Ok(())
    }
}

#[async_trait]
impl GuestPorts for FakeGuest {
    async fn connect_port(&self, port: u16) -> Result<PortConnection, GuestError> {
        self.system().await?;
        if port != echo::ECHO_PORT {
            let reason = format!("nothing listens on port {port} of the fake guest");
            return Err(refused(ErrorKind::Unavailable, reason));
        }
        Ok(echo::connect(self.channel.subscribe()))
    }
}

#[async_trait]
impl GuestInfo for FakeGuest {
    async fn system_info(&self) -> Result<SystemInfo, GuestError> {
        let system = self.system().await?;
        let memory_total = u64::from(system.memory_mib) << 20;
        Ok(SystemInfo {
            operating_system: "Fake".to_owned(),
            kernel_release: self.agent.kernel_release.clone(),
            host_name: system.host_name(),
            architecture: std::env::consts::ARCH.to_owned(),
            vcpus: system.vcpus,
            memory_total,
            memory_available: memory_total / 2,
            disk_total: 1 << 30,
            disk_available: 1 << 29,
            uptime_seconds: system.booted.elapsed().as_secs(),
            load_average: [0.0; 3],
            wall_clock_ms: now_ms(),
        })
    }

    async fn guest_processes(&self) -> Result<Vec<GuestProcess>, GuestError> {
        let process = |pid, parent, command| GuestProcess {
            command_omitted: 0,
            pid,
            parent,
            uid: 0,
            state: 'S',
            resident_bytes: 1 << 20,
            cpu_ms: 0,
            command,
        };
        let system = self.system().await?;
        let living = system.processes().into_iter().filter(|process| process.exit().is_none());
        let agent = process(1, 0, "microvm-agent".to_owned());
        Ok(std::iter::once(agent)
            .chain(living.map(|p| process(p.pid, 1, p.request.command.join(" "))))
            .collect())
    }

    async fn health(&self) -> Result<GuestHealth, GuestError> {
        let system = self.system().await?;
        Ok(GuestHealth {
            cpu_percent: 0.0,
            memory_percent: 50.0,
            disk_percent: 50.0,
            start_commands_done: system.start_commands_done(),
            start_command_not_started: system.not_started(),
        })
    }
}

#[async_trait]
impl GuestMeasure for FakeGuest {
    async fn measure_channel(
        &self,
        _to_guest: u64,
        _from_guest: u64,
    ) -> Result<(Duration, Duration), GuestError> {
        self.system().await?;
        // No bytes move between two parts of one memory; the least that can be told apart from nothing.
        Ok((Duration::from_nanos(1), Duration::from_nanos(1)))
    }

    async fn measure_spawn(&self, program: &str, rounds: u32) -> Result<Vec<Duration>, GuestError> {
        let system = self.system().await?;
        let request = ExecRequest { command: vec![program.to_owned()], ..ExecRequest::default() };
        let mut times = Vec::new();
        for _ in 0..rounds.min(100_000) {
            let begun = Instant::now();
            system.start(&request)?.ended().await;
            times.push(begun.elapsed());
        }
        Ok(times)
    }
}
