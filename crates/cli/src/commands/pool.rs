//! `microvm pool`: VMs made ahead.

use std::time::Duration;

use clap::{Args, Subcommand};
use microvm_api::pool::{CreatePool, Pool as Body, ResizePool};
use microvm_types::pool::{DEFAULT_MAX, DEFAULT_MIN};
use microvm_types::{ErrorKind, Name, VmRef};

use crate::commands::lifecycle::each_name;
use crate::commands::machine::MachineOptions;
use crate::context::Context;
use crate::duration;
use crate::error::CliError;
use crate::output::whole;

/// Verbs for pools.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Create a pool; it is filled in the background
    Create(Box<Create>),
    /// List pools
    #[command(visible_alias = "list")]
    Ls,
    /// Show everything about a pool
    Show(Named),
    /// Change the sizes of a pool
    Resize(Resize),
    /// Give VMs back to their pool
    Release(Release),
    /// Remove pools and the VMs that wait in them
    Rm(Remove),
}

/// Create a pool; it is filled in the background
#[derive(Debug, Args)]
#[command(after_help = "\
VMs of a pool are made ahead, have answered a command, and stand still until somebody wants one. A VM that was
handed out is never handed to anyone else. Prints the name of the pool.

Examples:
  microvm pool create py --template linux-microvm --min 4 --max 16
  microvm run --pool py -- python3 -c 'print(1)'")]
pub(crate) struct Create {
    /// Name of the pool
    pool: Name,
    #[command(flatten)]
    machine: MachineOptions,
    /// Number of VMs kept ready
    #[arg(long, default_value_t = DEFAULT_MIN)]
    min: usize,
    /// Limit of VMs at once, acquired ones included
    #[arg(long, default_value_t = DEFAULT_MAX)]
    max: usize,
    /// Replace VMs that waited for this time
    #[arg(long, value_name = "AGE", value_parser = duration::parse, default_value = "1h")]
    max_age: Duration,
}

/// One pool
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the pool
    pool: Name,
}

/// Change the sizes of a pool
#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// Name of the pool
    pool: Name,
    /// Number of VMs kept ready
    #[arg(long, required_unless_present_any = ["max", "max_age"])]
    min: Option<usize>,
    /// Limit of VMs at once, acquired ones included
    #[arg(long)]
    max: Option<usize>,
    /// Replace VMs that waited for this time
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    max_age: Option<Duration>,
}

/// Give VMs back to their pool
#[derive(Debug, Args)]
#[command(after_help = "\
A VM that is given back is deleted, with all that was done in it; where fewer wait than shall, a new one from the
golden snapshot takes its place. Prints the names of those given back.

Examples:
  microvm pool release py dev")]
pub(crate) struct Release {
    /// Name of the pool
    pool: Name,
    /// Names or ids of the VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<VmRef>,
}

/// Remove pools and the VMs that wait in them
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Names of the pools
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<Name>,
}

impl Pool {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Create(wish) => {
                let machine = wish.machine.request(std::collections::BTreeMap::new());
                if machine.name.is_some() {
                    let detail = "--name is for one VM: the name of a pool is the argument, and its VMs get theirs when they \
                                  are acquired";
                    return Err(CliError::new(ErrorKind::Invalid, "usage", detail));
                }
                let mut overrides = machine.overrides;
                // In a request for a VM these two stand beside the overrides, in one for a pool among them.
                overrides.vcpus = machine.vcpus.or(overrides.vcpus);
                overrides.memory_mib = machine.memory_mib.or(overrides.memory_mib);
                let request = CreatePool {
                    name: wish.pool,
                    template: machine.template,
                    overrides,
                    labels: machine.labels,
                    metadata: machine.metadata,
                    min: wish.min,
                    max: wish.max,
                    max_age_seconds: Some(wish.max_age.as_secs().max(1)),
                };
                let pool = client.create_pool(&request).await?;
                context.output.value(&pool, pool.name.as_str())?;
            }
            Self::Ls => {
                let list = client.list_pools().await?;
                let rows: Vec<Vec<String>> = list.pools.iter().map(row).collect();
                let header = ["NAME", "TEMPLATE", "READY", "FILLING", "ACQUIRED", "MIN", "MAX", "FAILURE"];
                context.output.table(&list, &header, rows)?;
                return Ok(whole("the record of the pool", &list.unreadable));
            }
            Self::Show(named) => context.output.json(&client.pool(&named.pool).await?)?,
            Self::Resize(wish) => {
                let max_age_seconds = wish.max_age.map(|age| age.as_secs().max(1));
                let request = ResizePool { min: wish.min, max: wish.max, max_age_seconds };
                let pool = client.resize_pool(&wish.pool, &request).await?;
                context.output.value(&pool, pool.name.as_str())?;
            }
            Self::Release(which) => {
                let pool = &which.pool;
                let release = async |vm: &VmRef| client.release(pool, vm).await.map(drop);
                return each_name(context, which.vms, release).await;
            }
            Self::Rm(which) => {
                return each_name(context, which.pools, async |pool: &Name| client.remove_pool(pool).await)
                    .await;
            }
        }
        Ok(0)
    }
}

fn row(pool: &Body) -> Vec<String> {
    vec![
        pool.name.to_string(),
        pool.template.clone(),
        pool.waiting.to_string(),
        pool.filling.to_string(),
        pool.handed_out.to_string(),
        pool.min.to_string(),
        pool.max.to_string(),
        pool.failure.clone().unwrap_or_default(),
    ]
}
