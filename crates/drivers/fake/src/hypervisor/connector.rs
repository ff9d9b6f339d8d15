//! Opens channels to fake guests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::GuestError;
use microvm_ports::guest::{Guest, GuestConnector, GuestEndpoint, Identity};
use microvm_ports::hypervisor::{Machine, MachineState};
use microvm_types::PathStyle;
use microvm_types::guest::AgentInfo;

use crate::hypervisor::guest::FakeGuest;
use crate::hypervisor::host::World;
use crate::script::{Operation, Verdict};

/// Connects to the machines of one [`FakeHypervisor`](crate::FakeHypervisor).
#[derive(Debug, Clone)]
pub struct FakeConnector {
    world: Arc<World>,
}

impl FakeConnector {
    pub(crate) const fn new(world: Arc<World>) -> Self {
        Self { world }
    }
}

#[async_trait]
impl GuestConnector for FakeConnector {
    async fn connect(
        &self,
        endpoint: &GuestEndpoint,
        epoch: u64,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let work = async {
            let verdict = self.world.script.ask(Operation::Connect).await;
            let GuestEndpoint::UnixSocket(path) = endpoint else {
                return Err(GuestError::Unreachable("the fake only has unix sockets".to_owned()));
            };
            let unreachable = || GuestError::Unreachable(format!("nothing listens at {path}"));
            if verdict == Verdict::Fail {
                return Err(unreachable());
            }
            let machine =
                path.parent().and_then(|directory| self.world.machine(directory)).ok_or_else(unreachable)?;
            let mut state = machine.state();
            // A paused machine does not answer, as in life: it is waited for until the deadline.
            let running =
                state.wait_for(|state| !matches!(state, MachineState::Paused | MachineState::DiskFull)).await;
            if !running.is_ok_and(|state| *state == MachineState::Running) {
                return Err(unreachable());
            }
            let channel = machine.system.open_epoch(epoch, identity).await?;
            verdict.finish().await;
            let agent = AgentInfo {
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                kernel_release: "6.0.0-fake".to_owned(),
                boot_ms: 1,
                path_style: PathStyle::Posix,
                firmware: None,
            };
            let guest = FakeGuest::new(agent, machine, channel, self.world.script.clone());
            Ok(Arc::new(guest) as Arc<dyn Guest>)
        };
        match tokio::time::timeout(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(GuestError::Timeout { action: "finish its handshake", after: deadline }),
        }
    }
}
