//! `microvm version` and `microvm info`: which program, which server, which host.

use std::collections::BTreeMap;

use clap::Args;
use microvm_api::system::{HostInfo, HypervisorInfo, Resource};
use microvm_client::{Client, ClientError, VmQuery};
use microvm_types::ByteSize;
use serde::Serialize;
use serde_json::json;

use crate::context::Context;
use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;
use crate::settings::Settings;

/// Print the versions of this program and of the server
#[derive(Debug, Args)]
#[command(after_help = "Does not start a server.\n\nExample:\n  microvm version")]
pub(crate) struct Version {}

impl Version {
    pub(crate) async fn run(self, settings: &Settings, format: Format) -> Result<u8, CliError> {
        let own = env!("CARGO_PKG_VERSION");
        let client = Client::new(microvm_server::socket_path(&settings.root));
        let server = match client.live().await {
            Ok(liveness) => Some(liveness.version),
            Err(ClientError::NoServer { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let shown = server.as_deref().unwrap_or("not running");
        Output::new(format)
            .value(&json!({ "client": own, "server": server }), &format!("client  {own}\nserver  {shown}"))?;
        Ok(0)
    }
}

/// Show the server, its host and what it has
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  microvm info")]
pub(crate) struct Info {}

/// The output of `--output json`.
#[derive(Serialize)]
struct Shown {
    host: HostInfo,
    /// Absent if the hypervisor cannot be used: `doctor` says why.
    hypervisor: Option<HypervisorInfo>,
    root: String,
    socket: String,
    /// Number of VMs in each state.
    vms: BTreeMap<String, usize>,
    images: usize,
    kernels: usize,
    pools: usize,
}

impl Info {
    pub(crate) async fn run(self, context: &Context, settings: &Settings) -> Result<u8, CliError> {
        let client = &context.client;
        let mut vms = BTreeMap::new();
        for vm in client.list_vms(&VmQuery::default()).await?.vms {
            *vms.entry(vm.state.to_string()).or_default() += 1;
        }
        let shown = Shown {
            host: client.host_info().await?,
            hypervisor: client.doctor().await?.hypervisor,
            root: settings.root.to_string(),
            socket: client.socket().to_string(),
            vms,
            images: client.images().await?.images.len(),
            kernels: client.kernels().await?.kernels.len(),
            pools: client.list_pools().await?.pools.len(),
        };
        if context.output.is_json() {
            context.output.json(&shown)?;
        } else {
            context.output.pairs(&shown.pairs())?;
        }
        Ok(0)
    }
}

impl Shown {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let host = &self.host;
        let up = host.uptime_seconds;
        let states: Vec<String> = self.vms.iter().map(|(state, count)| format!("{count} {state}")).collect();
        // A server of an earlier version does not tell.
        let limits = host.limits.map_or_else(
            || "unknown".to_owned(),
            |limits| {
                let mib = |mib: u32| ByteSize(u64::from(mib) << 20);
                let (memory, disk) = (mib(limits.memory_mib), mib(limits.disk_mib));
                format!("{} processors, {memory} of memory, {disk} of disk", limits.vcpus)
            },
        );
        let hypervisor = self.hypervisor.as_ref().map_or_else(
            || "cannot be used: `microvm doctor` says why".to_owned(),
            |found| format!("{} {}, {}", found.driver, found.version, found.accelerator),
        );
        vec![
            ("server", format!("{} (pid {}, up {up}s)", host.version, host.server_pid)),
            ("socket", self.socket.clone()),
            ("root", self.root.clone()),
            ("host", host.platform.clone()),
            ("hypervisor", hypervisor),
            ("processors", host.cpu_count.to_string()),
            ("memory", resource(&host.memory)),
            ("disk", resource(&host.disk)),
            ("VM limits", limits),
            ("VMs", if states.is_empty() { "none".to_owned() } else { states.join(", ") }),
            ("images", self.images.to_string()),
            ("kernels", self.kernels.to_string()),
            ("pools", self.pools.to_string()),
        ]
    }
}

fn resource(resource: &Resource) -> String {
    format!("{} free of {}", ByteSize(resource.available), ByteSize(resource.total))
}
