//! `microvm health`: whether guests are well.

use clap::Args;
use microvm_api::guest::HealthOfGuest;
use microvm_types::guest::Verdict;
use microvm_types::{ErrorKind, VmRef};

use crate::context::Context;
use crate::error::CliError;
use crate::notice::say;
use crate::output::FAULTY;

/// Show the health of VMs
#[derive(Debug, Args)]
#[command(after_help = "\
Pings every running guest and asks for its measurements; VMs that rest are not woken. A guest is unhealthy from 95 % of
memory or disk on, or if it does not answer; degraded from 85 % of processors, memory or disk on, or while start
commands are not done. Ends with 1 if one is unhealthy.

Examples:
  microvm health
  microvm health dev web")]
pub(crate) struct Health {
    /// Names or ids of the VMs, or the first characters of ids [default: all]
    #[arg(value_name = "VM")]
    vms: Vec<VmRef>,
}

impl Health {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        // The server knows beginnings of ids, and refuses those that several VMs have.
        let mut asked = Vec::with_capacity(self.vms.len());
        for vm in &self.vms {
            asked.push(context.client.vm(vm).await?.id);
        }
        let mut all = context.client.health_of_guests().await?;
        if let Some(gone) = asked.iter().position(|id| all.vms.iter().all(|one| one.id != *id)) {
            let detail = format!("the VM `{}` was deleted meanwhile", self.vms[gone]);
            return Err(CliError::new(ErrorKind::NotFound, "vm_not_found", detail));
        }
        if !asked.is_empty() {
            all.vms.retain(|one| asked.contains(&one.id));
        }
        let rows: Vec<Vec<String>> = all.vms.iter().map(row).collect();
        context.output.table(&all, &["NAME", "STATE", "HEALTH", "CPU", "MEMORY", "DISK", "PING"], rows)?;
        for one in &all.vms {
            if let Some(error) = &one.error {
                say(&format!("{}: {error}", one.name));
            }
        }
        let ill = all.vms.iter().any(|one| one.verdict == Some(Verdict::Unhealthy));
        Ok(if ill { FAULTY } else { 0 })
    }
}

fn row(one: &HealthOfGuest) -> Vec<String> {
    let none = || "-".to_owned();
    let percent = |value: fn(&microvm_types::guest::GuestHealth) -> f64| {
        one.health.as_ref().map_or_else(none, |health| format!("{:.0} %", value(health)))
    };
    vec![
        one.name.to_string(),
        one.state.to_string(),
        one.verdict.map_or_else(none, |verdict| verdict.as_str().to_owned()),
        percent(|health| health.cpu_percent),
        percent(|health| health.memory_percent),
        percent(|health| health.disk_percent),
        one.round_trip_us.map_or_else(none, |micros| format!("{}.{} ms", micros / 1000, micros % 1000 / 100)),
    ]
}
