//! Operations on VMs.

use std::fmt::Write as _;

use hyper::Method;
use microvm_api::exec::{Execute, Executed, ProcessList, SendSignal};
use microvm_api::guest::{GuestProcesses, HealthReply, Ping, SystemInfoReply};
use microvm_api::query::encode;
use microvm_api::vm::{Counters, ResizeVm, StopVm};
use microvm_api::{CreateVm, END_HEADER, OFFSET_HEADER, Vm, VmList};
use microvm_types::{Phase, ProcessId, VmRef};

use crate::client::{Client, read_all};
use crate::error::ClientError;

/// Which VMs are wanted; all by default.
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

impl VmQuery {
    fn to_query(&self) -> String {
        let mut query = String::new();
        let mut add = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = write!(
                query,
                "{}{name}={}",
                if query.is_empty() { '?' } else { '&' },
                encode(value.as_bytes())
            );
        };
        for (key, value) in &self.labels {
            add("label", &format!("{key}={value}"));
        }
        for (key, value) in &self.metadata {
            add("metadata", &format!("{key}={value}"));
        }
        for state in &self.states {
            add("state", state.as_str());
        }
        if let Some(name) = &self.name {
            add("name", name);
        }
        query
    }
}

/// Each method is one request; see the REST reference for what it does. All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// Creates a VM, and starts it unless told otherwise.
    pub async fn create_vm(&self, request: &CreateVm) -> Result<Vm, ClientError> {
        self.json(Method::POST, "/vms", Some(request), "creating a VM").await
    }

    /// Some VMs, in order of creation.
    pub async fn list_vms(&self, query: &VmQuery) -> Result<VmList, ClientError> {
        self.get(&format!("/vms{}", query.to_query()), "listing VMs").await
    }

    /// One VM.
    pub async fn vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.get(&format!("/vms/{vm}"), "reading a VM").await
    }

    /// Starts a VM; answers when its agent does.
    pub async fn start_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.act(vm, "start", None::<&()>).await
    }

    /// Boots a VM from its disk, also one that sleeps: what it had in memory is given up.
    pub async fn start_vm_cold(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.act(vm, "start?cold=true", None::<&()>).await
    }

    /// Makes its processors stand still.
    pub async fn pause_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.act(vm, "pause", None::<&()>).await
    }

    /// Lets it go on.
    pub async fn resume_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.act(vm, "resume", None::<&()>).await
    }

    /// Puts it to disk; the next request wakes it.
    pub async fn hibernate_vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.act(vm, "hibernate", None::<&()>).await
    }

    /// Shuts it down.
    pub async fn stop_vm(&self, vm: &VmRef, how: &StopVm) -> Result<Vm, ClientError> {
        self.act(vm, "stop", Some(how)).await
    }

    /// Changes the memory of a running VM.
    pub async fn resize_vm(&self, vm: &VmRef, memory_mib: u32) -> Result<Vm, ClientError> {
        self.act(vm, "resize", Some(&ResizeVm { memory_mib })).await
    }

    async fn act(
        &self,
        vm: &VmRef,
        verb: &str,
        body: Option<&(impl serde::Serialize + Sync)>,
    ) -> Result<Vm, ClientError> {
        self.json(Method::POST, &format!("/vms/{vm}/{verb}"), body, "changing a VM").await
    }

    /// Removes a VM, whatever it is doing.
    pub async fn delete_vm(&self, vm: &VmRef) -> Result<(), ClientError> {
        self.empty(Method::DELETE, &format!("/vms/{vm}"), None::<&()>, "deleting a VM").await
    }

    /// Counters of a running VM.
    pub async fn counters(&self, vm: &VmRef) -> Result<Counters, ClientError> {
        self.get(&format!("/vms/{vm}/metrics"), "reading counters").await
    }

    /// At most `limit` bytes of its console, from an offset on.
    pub async fn console(&self, vm: &VmRef, from: u64, limit: usize) -> Result<ConsolePart, ClientError> {
        let action = "reading the console";
        let path = format!("/vms/{vm}/console?limit={limit}&offset={from}");
        let response = self.send_json(Method::GET, &path, None::<&()>, action).await?;
        let number = |name| {
            let text = response.headers().get(name).and_then(|value| value.to_str().ok());
            let number = text.and_then(|text| text.parse().ok());
            number.ok_or_else(|| ClientError::Answer(format!("the answer has no header `{name}`")))
        };
        let (offset, end) = (number(OFFSET_HEADER)?, number(END_HEADER)?);
        Ok(ConsolePart { offset, end, bytes: read_all(response, action).await? })
    }

    /// Asks the agent for an empty answer.
    pub async fn ping(&self, vm: &VmRef) -> Result<Ping, ClientError> {
        self.get(&format!("/vms/{vm}/guest/ping"), "pinging a guest").await
    }

    /// The guest as a system.
    pub async fn system_info(&self, vm: &VmRef) -> Result<SystemInfoReply, ClientError> {
        self.get(&format!("/vms/{vm}/guest/system-info"), "asking a guest").await
    }

    /// All processes of the guest.
    pub async fn guest_processes(&self, vm: &VmRef) -> Result<GuestProcesses, ClientError> {
        self.get(&format!("/vms/{vm}/guest/processes"), "asking a guest").await
    }

    /// How the guest is doing.
    pub async fn guest_health(&self, vm: &VmRef) -> Result<HealthReply, ClientError> {
        self.get(&format!("/vms/{vm}/guest/health"), "asking a guest").await
    }

    /// Runs a command to its end and collects its output.
    pub async fn execute(&self, vm: &VmRef, request: &Execute) -> Result<Executed, ClientError> {
        self.json(Method::POST, &format!("/vms/{vm}/guest/execute"), Some(request), "running a command").await
    }

    /// Processes started through the agent.
    pub async fn processes(&self, vm: &VmRef) -> Result<ProcessList, ClientError> {
        self.get(&format!("/vms/{vm}/processes"), "asking a guest").await
    }

    /// Sends a signal to a process started through the agent.
    pub async fn signal(&self, vm: &VmRef, process: &ProcessId, signal: u8) -> Result<(), ClientError> {
        let path = format!("/vms/{vm}/processes/{process}/signal");
        self.empty(Method::POST, &path, Some(&SendSignal { signal }), "sending a signal").await
    }
}
