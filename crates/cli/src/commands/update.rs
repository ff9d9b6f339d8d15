//! `microvm update`: limits, labels and metadata of VMs.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use microvm_api::vm::{UpdateLimits, UpdateVm};
use microvm_types::VmRef;

use crate::commands::lifecycle::each;
use crate::context::Context;
use crate::duration;
use crate::error::CliError;
use crate::pairs::pair;

/// Change limits, labels and metadata of VMs
#[derive(Debug, Args)]
#[command(after_help = "\
In any state, without a restart. What is not named stays; `off` removes a limit. The memory of a running VM is
changed by `resize`. Prints the names of the VMs.

Examples:
  microvm update dev --lifetime +2h                two more hours from now
  microvm update dev --idle off --label team=red
  microvm update dev --rm-label team")]
pub(crate) struct Update {
    /// Names or ids of the VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<VmRef>,
    #[command(flatten)]
    changes: Changes,
}

/// At least one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Stop the VM after this time without use
    #[arg(long, value_name = "TIME|off", value_parser = limit)]
    idle: Option<Limit>,
    /// Stop the VM this time after its creation, or with `+` from now
    #[arg(long, value_name = "TIME|+TIME|off", value_parser = lifetime)]
    lifetime: Option<Lifetime>,
    /// Pause the VM after this time without use; the next request wakes it
    #[arg(long, value_name = "TIME|off", value_parser = limit)]
    pause_after: Option<Limit>,
    /// Hibernate the VM after this time without use; the next request wakes it
    #[arg(long, value_name = "TIME|off", value_parser = limit)]
    hibernate_after: Option<Limit>,
    /// Delete the VM, instead of stopping it, when a limit passes or its guest ends
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ephemeral: Option<bool>,
    /// Set a label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Remove a label
    #[arg(long = "rm-label", value_name = "KEY")]
    rm_labels: Vec<String>,
    /// Set free text kept with the VM
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Remove free text kept with the VM
    #[arg(long, value_name = "KEY")]
    rm_metadata: Vec<String>,
}

/// Seconds; 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(u64);

fn limit(text: &str) -> Result<Limit, String> {
    if text == "off" {
        return Ok(Limit(0));
    }
    // Half a second must not become 0, which is no limit.
    duration::parse(text).map(|time: Duration| Limit(time.as_secs().max(1)))
}

/// A lifetime from the creation on, or from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Whole(Limit),
    Left(u64),
}

fn lifetime(text: &str) -> Result<Lifetime, String> {
    match text.strip_prefix('+') {
        Some(left) => duration::parse(left).map(|time| Lifetime::Left(time.as_secs().max(1))),
        None => limit(text).map(Lifetime::Whole),
    }
}

impl Changes {
    fn request(self) -> UpdateVm {
        let (lifetime_seconds, lifetime_left_seconds) = match self.lifetime {
            Some(Lifetime::Whole(limit)) => (Some(limit.0), None),
            Some(Lifetime::Left(seconds)) => (None, Some(seconds)),
            None => (None, None),
        };
        UpdateVm {
            labels: merged(self.labels, self.rm_labels),
            metadata: merged(self.metadata, self.rm_metadata),
            limits: UpdateLimits {
                idle_seconds: self.idle.map(|limit| limit.0),
                lifetime_seconds,
                lifetime_left_seconds,
                pause_seconds: self.pause_after.map(|limit| limit.0),
                hibernate_seconds: self.hibernate_after.map(|limit| limit.0),
                ephemeral: self.ephemeral,
            },
        }
    }
}

fn merged(set: Vec<(String, String)>, removed: Vec<String>) -> BTreeMap<String, Option<String>> {
    let set = set.into_iter().map(|(key, value)| (key, Some(value)));
    // In this order: a key that is both removed and set is set.
    removed.into_iter().map(|key| (key, None)).chain(set).collect()
}

impl Update {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let change = self.changes.request();
        each(context, &self.vms, async |vm: &VmRef| context.client.update_vm(vm, &change).await).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_times_or_off() {
        assert_eq!(limit("off"), Ok(Limit(0)));
        assert_eq!(limit("1h"), Ok(Limit(3600)));
        assert_eq!(limit("1ms"), Ok(Limit(1)), "never 0, which would be no limit");
        assert!(limit("+1h").is_err() && limit("0").is_err() && limit("").is_err());
        assert_eq!(lifetime("+90s"), Ok(Lifetime::Left(90)));
        assert_eq!(lifetime("off"), Ok(Lifetime::Whole(Limit(0))));
        assert!(lifetime("+off").is_err() && lifetime("+").is_err());
    }
}
