//! Operations on VMs and what is in them.

use microvm_api::exec::{Execute, Executed, ProcessList, SendSignal};
use microvm_api::guest::{
    GuestProcesses, GuestsHealth, HealthReply, Ping, ShutdownGuest, StartCommands, SystemInfoReply,
};
use microvm_api::operations::{guest, process, vm};
use microvm_api::queries::{self, DeleteVm, ListVms, NoQuery, StartVm, WaitForVm};
use microvm_api::query::{FilterPair, FilterState, RawBytes};
use microvm_api::vm::{
    Counters, Event, KillVm, Killed, RenameVm, ResizeVm, RestartVm, Stats, StopVm, UpdateVm,
};
use microvm_api::{CreateVm, END_HEADER, OFFSET_HEADER, Vm, VmList};
use microvm_types::{Name, Phase, ProcessId, VmRef};

use crate::client::Client;
use crate::error::ClientError;

/// Filter of VMs; every condition must hold. The default matches all.
#[derive(Debug, Clone, Default)]
pub struct VmQuery {
    /// Labels they must have.
    pub labels: Vec<(String, String)>,
    /// Metadata they must have.
    pub metadata: Vec<(String, String)>,
    /// States they may be in; empty: any.
    pub states: Vec<Phase>,
    /// Text their name must contain.
    pub name: Option<String>,
}

impl From<&VmQuery> for ListVms {
    fn from(query: &VmQuery) -> Self {
        let pairs = |pairs: &[(String, String)]| {
            pairs.iter().map(|(key, value)| FilterPair::of(key, value)).collect::<Vec<_>>()
        };
        Self {
            label: pairs(&query.labels),
            metadata: pairs(&query.metadata),
            state: query.states.iter().copied().map(FilterState::from).collect(),
            status: Vec::new(),
            name: query.name.as_ref().map(|name| RawBytes(name.as_bytes().to_owned())),
            waiting: false,
        }
    }
}

/// Some of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePart {
    /// Offset of the first of `bytes`, counted over all that the VM ever wrote there; bytes before it are not kept any more
    /// if it is beyond what was asked for.
    pub offset: u64,
    /// The bytes.
    pub bytes: bytes::Bytes,
    /// Offset after the newest byte.
    pub end: u64,
}

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Creates a VM, and starts it unless told otherwise.
    pub async fn create_vm(&self, request: &CreateVm) -> Result<Vm, ClientError> {
        self.tell::<vm::Create>(&(), request).await
    }

    /// Some VMs, in order of creation.
    pub async fn list_vms(&self, query: &VmQuery) -> Result<VmList, ClientError> {
        self.call::<vm::List>(&(), &query.into(), ()).await
    }

    /// One VM.
    pub async fn vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.ask::<vm::Get>(vm).await
    }

    /// Starts a VM; answers when its agent does.
    pub async fn start_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.call::<vm::Start>(vm, &StartVm { cold: false }, ()).await
    }

    /// Boots a VM from its disk, also one that sleeps: what it had in memory is given up.
    pub async fn start_vm_cold(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.call::<vm::Start>(vm, &StartVm { cold: true }, ()).await
    }

    /// Pauses a VM: its processors stop.
    pub async fn pause_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.ask::<vm::Pause>(vm).await
    }

    /// Resumes a paused VM.
    pub async fn resume_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.ask::<vm::Resume>(vm).await
    }

    /// Hibernates a VM; the next request wakes it.
    pub async fn hibernate_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.ask::<vm::Hibernate>(vm).await
    }

    /// Stops a VM.
    pub async fn stop_vm(&self, vm: &VmRef, how: &StopVm) -> Result<Vm, ClientError> {
        self.tell::<vm::Stop>(vm, how).await
    }

    /// Shuts a VM down, now or later.
    pub async fn shut_down_guest(&self, vm: &VmRef, how: &ShutdownGuest) -> Result<Vm, ClientError> {
        self.tell::<guest::Shutdown>(vm, how).await
    }

    /// Stops a VM and starts it.
    pub async fn restart_vm(&self, vm: &VmRef, how: &RestartVm) -> Result<Vm, ClientError> {
        self.tell::<vm::Restart>(vm, how).await
    }

    /// Sends a signal to a VM: SIGKILL ends its machine, any other goes to its commands.
    pub async fn kill_vm(&self, vm: &VmRef, signal: u8) -> Result<Killed, ClientError> {
        self.tell::<vm::Kill>(vm, &KillVm { signal }).await
    }

    /// Renames a VM.
    pub async fn rename_vm(&self, vm: &VmRef, name: Name) -> Result<Vm, ClientError> {
        self.tell::<vm::Rename>(vm, &RenameVm { name }).await
    }

    /// Changes limits, labels and metadata of a VM.
    pub async fn update_vm(&self, vm: &VmRef, change: &UpdateVm) -> Result<Vm, ClientError> {
        self.tell::<vm::Update>(vm, change).await
    }

    /// Waits for a state of a VM, at most as long as the query says.
    pub async fn wait_for_vm(&self, vm: &VmRef, query: &WaitForVm) -> Result<Event, ClientError> {
        self.call::<vm::Wait>(vm, query, ()).await
    }

    /// Resource use of a VM.
    pub async fn stats(&self, vm: &VmRef) -> Result<Stats, ClientError> {
        self.ask::<vm::Stats>(vm).await
    }

    /// Changes the memory of a running VM.
    pub async fn resize_vm(&self, vm: &VmRef, size: &ResizeVm) -> Result<Vm, ClientError> {
        self.tell::<vm::Resize>(vm, size).await
    }

    /// Removes a VM, whatever it is doing.
    pub async fn delete_vm(&self, vm: &VmRef) -> Result<(), ClientError> {
        self.call::<vm::Delete>(vm, &DeleteVm { forget_disks: false }, ()).await
    }

    /// Removes a VM, also if disk files of the user's cannot take what it wrote to them: that is lost.
    pub async fn delete_vm_forgetting_disks(&self, vm: &VmRef) -> Result<(), ClientError> {
        self.call::<vm::Delete>(vm, &DeleteVm { forget_disks: true }, ()).await
    }

    /// Health of all VMs, each running guest asked.
    pub async fn health_of_guests(&self) -> Result<GuestsHealth, ClientError> {
        self.ask::<guest::HealthOfAll>(&()).await
    }

    /// Counters of a running VM.
    pub async fn counters(&self, vm: &VmRef) -> Result<Counters, ClientError> {
        self.ask::<vm::Metrics>(vm).await
    }

    /// At most `limit` bytes of its console, from an offset on.
    pub async fn console(&self, vm: &VmRef, from: u64, limit: usize) -> Result<ConsolePart, ClientError> {
        let query = queries::ConsolePart { limit, offset: Some(from) };
        let part = self.call::<vm::Console>(vm, &query, ()).await?;
        Ok(ConsolePart {
            offset: part.number(OFFSET_HEADER)?,
            end: part.number(END_HEADER)?,
            bytes: part.bytes,
        })
    }

    /// Asks the agent for an empty answer.
    pub async fn ping(&self, vm: &VmRef) -> Result<Ping, ClientError> {
        self.ask::<guest::Ping>(vm).await
    }

    /// The guest as a system.
    pub async fn system_info(&self, vm: &VmRef) -> Result<SystemInfoReply, ClientError> {
        self.ask::<guest::SystemInfo>(vm).await
    }

    /// All processes of the guest.
    pub async fn guest_processes(&self, vm: &VmRef) -> Result<GuestProcesses, ClientError> {
        self.ask::<guest::Processes>(vm).await
    }

    /// Start commands of a VM, and why one failed.
    pub async fn start_commands(&self, vm: &VmRef) -> Result<StartCommands, ClientError> {
        self.ask::<guest::StartCommands>(vm).await
    }

    /// Health of the guest.
    pub async fn guest_health(&self, vm: &VmRef) -> Result<HealthReply, ClientError> {
        self.ask::<guest::Health>(vm).await
    }

    /// Runs a command to its end and collects its output.
    pub async fn execute(&self, vm: &VmRef, request: &Execute) -> Result<Executed, ClientError> {
        self.tell::<guest::Run>(vm, request).await
    }

    /// Processes started through the agent.
    pub async fn processes(&self, vm: &VmRef) -> Result<ProcessList, ClientError> {
        self.ask::<process::List>(vm).await
    }

    /// Sends a signal to a process started through the agent.
    pub async fn signal(&self, vm: &VmRef, process: &ProcessId, signal: u8) -> Result<(), ClientError> {
        let path = (vm.clone(), process.clone());
        self.call::<process::Signal>(&path, &NoQuery {}, &SendSignal { signal }).await
    }
}
