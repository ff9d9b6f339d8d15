//! `microvm volume`: disks with a file system that stay when VMs go.

use std::io::{BufRead as _, IsTerminal as _};

use clap::{Args, Subcommand};
use microvm_api::volume::{CreateVolume, PrunedVolumes, Volume as VolumeBody};
use microvm_types::{ByteSize, ErrorKind, Name, NameError};

use crate::commands::lifecycle::each_name;
use crate::commands::machine::whole_mib;
use crate::context::Context;
use crate::error::CliError;
use crate::notice::say;
use crate::output::{age, whole};

/// Verbs for volumes.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A volume is a disk with a file system of its own. `run` and `create` mount it with `--volume NAME:/data`, and create it
at its first use. It stays when VMs are deleted. One VM at a time may write to it, and several may read it (`:ro`) while
none writes. Forks and restored VMs get copies of their own; snapshots hold what a VM may write to, not what it has `:ro`.")]
pub(crate) enum Volume {
    /// Create a volume
    Create(Create),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls,
    /// Show everything about a volume
    Inspect(Named),
    /// Remove volumes with all that is on them
    Rm(Remove),
    /// Remove all volumes that no VM has
    Prune(Prune),
}

/// Create a volume
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm volume create data --size 20GiB
  microvm run -v data:/data -- sh -c 'date >> /data/log'")]
pub(crate) struct Create {
    /// Name of the volume
    name: Name,
    /// Size, for example 20GiB [default: 10GiB]; the host's space is taken as it is used
    #[arg(long, value_name = "SIZE", value_parser = whole_mib)]
    size: Option<u32>,
}

/// One volume
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the volume
    name: Name,
}

/// Remove volumes with all that is on them
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Names of the volumes
    #[arg(required = true)]
    names: Vec<Name>,
}

/// Remove all volumes that no VM has
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

impl Volume {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Ls => return list(context).await,
            Self::Create(Create { name, size }) => {
                let made = client.create_volume(&CreateVolume { name, size_mib: size }).await?;
                context.output.value(&made, made.name.as_str())?;
            }
            Self::Inspect(Named { name }) => context.output.json(&client.volume(&name).await?)?,
            Self::Rm(Remove { names }) => {
                return each_name(context, names, async |name: &Name| client.remove_volume(name).await).await;
            }
            Self::Prune(Prune { force }) => return prune(context, force).await,
        }
        Ok(0)
    }
}

async fn list(context: &Context) -> Result<u8, CliError> {
    let list = context.client.volumes().await?;
    let rows: Vec<_> = list.volumes.iter().map(row).collect();
    context.output.table(&list, &["NAME", "SIZE", "USED", "VMS", "AGE"], rows)?;
    Ok(whole("the volume", &list.unreadable))
}

fn row(volume: &VolumeBody) -> Vec<String> {
    vec![
        volume.name.to_string(),
        ByteSize(u64::from(volume.size_mib) << 20).to_string(),
        ByteSize(volume.used_bytes).to_string(),
        volume.vms.iter().map(Name::as_str).collect::<Vec<_>>().join(","),
        age(&volume.created_at),
    ]
}

/// Data is lost for ever, so it is asked for once more.
async fn prune(context: &Context, force: bool) -> Result<u8, CliError> {
    let pruned = match force {
        true => Some(context.client.prune_volumes().await?),
        false => prune_agreed(context).await?,
    };
    let Some(pruned) = pruned else { return Ok(1) };
    let names = pruned.removed.iter().map(|name| format!("{name}\n")).collect::<String>();
    context.output.value(&pruned, names.trim_end())?;
    say(&format!("{} freed", ByteSize(pruned.freed_bytes)));
    Ok(0)
}

/// Removes the volumes that were asked about, and no others that have become unused since; `None` if the answer is no.
async fn prune_agreed(context: &Context) -> Result<Option<PrunedVolumes>, CliError> {
    let mut pruned = PrunedVolumes { removed: Vec::new(), freed_bytes: 0 };
    let list = context.client.volumes().await?;
    // Which of several with one name has the data is for people to say; `rm` takes ids.
    let is_clear =
        |volume: &VolumeBody| list.volumes.iter().filter(|other| other.name == volume.name).count() == 1;
    let unused: Vec<_> = list.volumes.iter().filter(|one| one.vms.is_empty() && is_clear(one)).collect();
    if unused.is_empty() {
        return Ok(Some(pruned));
    }
    let names: Vec<&str> = unused.iter().map(|volume| volume.name.as_str()).collect();
    if !agreed(&names)? {
        return Ok(None);
    }
    for volume in unused {
        let id: Name =
            volume.id.as_str().parse().map_err(|error: NameError| {
                CliError::new(ErrorKind::Internal, "bad_id", error.to_string())
            })?;
        match context.client.remove_volume(&id).await {
            Ok(()) => {
                pruned.removed.push(volume.name.clone());
                pruned.freed_bytes += volume.used_bytes;
            }
            // Somebody began to use it, or removed it.
            Err(error) if matches!(error.code(), "volume_has_vms" | "volume_not_found") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(pruned))
}

fn agreed(unused: &[&str]) -> Result<bool, CliError> {
    let question = format!("all data of these volumes will be lost: {}", unused.join(", "));
    if !std::io::stdin().is_terminal() {
        let detail = format!("{question}; `--force` removes them without a question");
        return Err(CliError::new(ErrorKind::Invalid, "not_confirmed", detail));
    }
    say(&format!("{question}. Remove them? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| {
        CliError::new(ErrorKind::Internal, "stdin_failed", format!("the answer could not be read: {error}"))
    })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
