//! `microvm snapshot`: saved states of VMs.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use microvm_api::progress::ProgressLine;
use microvm_api::snapshot::{CreateSnapshot, Snapshot as Body, SnapshotFile};
use microvm_types::{ByteSize, ErrorKind, Name, SnapshotId, Unreadable, VmRef};

use crate::commands::lifecycle::{each_name, keep_first};
use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::output::{FAULTY, age, whole};
use crate::settings::absolute;
use crate::{duration, progress};

/// Verbs for snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Take a snapshot of a running, paused or hibernated VM, which runs on
    Create(Create),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(List),
    /// Show everything about a snapshot
    Inspect(Named),
    /// Read every byte of snapshots and report damage
    Verify(Several),
    /// Remove snapshots
    Rm(Remove),
    /// Show snapshots below the ones that they build on
    Tree(List),
    /// Show the number of snapshots and their sizes
    Stats,
    /// Remove old snapshots
    Prune(Prune),
    /// Write a snapshot, with all that it builds on, to one compressed file
    Export(Export),
    /// Import an exported snapshot
    Import(Import),
}

/// Take a snapshot of a running, paused or hibernated VM, which runs on
#[derive(Debug, Args)]
#[command(after_help = "\
Memory, processes and disk are taken at one moment; the VM stands still for some milliseconds. Only what changed
since the state the VM began with is written. A VM keeps its ten newest snapshots without --name; named ones
stay until they are removed. Prints the name of the snapshot.

Examples:
  microvm snapshot create dev --name ready --description 'packages installed'
  microvm restore ready --name copy
  microvm rollback dev ready")]
pub(crate) struct Create {
    /// Name or id of the VM
    vm: VmRef,
    /// Name of the snapshot [default: generated from the VM's name]
    #[arg(long)]
    name: Option<Name>,
    /// Description for people
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Copy all data instead of building on the parent snapshot
    #[arg(long)]
    full: bool,
    /// Return as soon as the VM runs again; the snapshot is listed when all data is on disk
    #[arg(long)]
    no_wait: bool,
}

/// List snapshots
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only snapshots of this VM
    vm: Option<VmRef>,
    /// Include golden snapshots
    #[arg(long)]
    golden: bool,
}

/// One snapshot
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name or id of the snapshot
    snapshot: String,
}

/// Some snapshots
#[derive(Debug, Args)]
pub(crate) struct Several {
    /// Names or ids of the snapshots [default: all]
    snapshots: Vec<String>,
}

/// Remove snapshots
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Names or ids of the snapshots
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Also remove snapshots that build on them
    #[arg(long)]
    cascade: bool,
}

/// Remove old snapshots
#[derive(Debug, Args)]
#[command(after_help = "\
Those that others build on stay, and those that somebody named, unless --named. Prints the names of those removed.
Without --keep and --older-than it removes those older than 30 days (MICROVM_SNAPSHOT_AGE of the server), as the
server does by itself once a day.

Examples:
  microvm snapshot prune --keep 3
  microvm snapshot prune --named --older-than 30d")]
pub(crate) struct Prune {
    /// Keep this number of each VM's newest snapshots
    #[arg(long, value_name = "COUNT")]
    keep: Option<usize>,
    /// Remove snapshots older than this, for example 12h or 30d
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Also count and remove snapshots that users named
    #[arg(long)]
    named: bool,
}

/// Write a snapshot, with all that it builds on, to one compressed file
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Name or id of the snapshot
    snapshot: String,
    /// File to write, on the server's host
    file: Utf8PathBuf,
}

/// Import an exported snapshot
#[derive(Debug, Args)]
#[command(after_help = "The image of the snapshot must exist here: `microvm image ls`.")]
pub(crate) struct Import {
    /// File to read, on the server's host
    file: Utf8PathBuf,
    /// Name of the snapshot
    #[arg(long)]
    name: Name,
}

impl Snapshot {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Create(wish) => {
                let mut interrupts = Interrupts::new()?;
                let request = CreateSnapshot {
                    name: wish.name,
                    description: wish.description,
                    full: wish.full,
                    ..CreateSnapshot::default()
                };
                if wish.no_wait {
                    let begun = client.begin_snapshot(&wish.vm, &request).await?;
                    context.output.value(&begun, begun.name.as_str())?;
                    return Ok(0);
                }
                let taking = async { Ok(client.create_snapshot(&wish.vm, &request).await?) };
                let snapshot = interrupts.unless(taking).await?;
                context.output.value(&snapshot, snapshot.name.as_str())?;
            }
            Self::Ls(which) => return list(context, which).await,
            Self::Inspect(named) => context.output.json(&client.snapshot(&named.snapshot).await?)?,
            Self::Verify(which) => return verify(context, which.snapshots).await,
            Self::Rm(which) => return remove(context, which).await,
            Self::Tree(which) => {
                let list = client.list_snapshots(which.vm.as_ref(), which.golden).await?;
                let text = tree(&list.snapshots);
                context.output.value(&list, text.trim_end())?;
                return Ok(unreadable(&list.unreadable));
            }
            Self::Stats => return stats(context).await,
            Self::Prune(which) => {
                let cleaned = client.prune_snapshots(which.keep, which.older_than, which.named).await?;
                let names: Vec<&str> = cleaned.removed.iter().map(Name::as_str).collect();
                if context.output.is_json() {
                    context.output.json(&cleaned)?;
                } else if !names.is_empty() {
                    context.output.line(&names.join("\n"))?;
                }
                for one in &cleaned.kept {
                    say(&format!("the snapshot {} could not be removed: {}", one.name, one.reason));
                }
                return Ok(if cleaned.kept.is_empty() { 0 } else { FAULTY });
            }
            Self::Export(wish) => {
                let file = SnapshotFile { path: absolute(&wish.file)?.into_string(), name: None };
                let lines = client.export_snapshot(&wish.snapshot, &file).await?;
                let outcome = Interrupts::new()?.unless(progress::follow(lines)).await?;
                let ProgressLine::Exported { path, bytes } = &outcome else {
                    return Err(progress::unexpected());
                };
                context.output.value(&outcome, &format!("{path}: {}", ByteSize(*bytes)))?;
            }
            Self::Import(wish) => {
                let file = SnapshotFile { path: absolute(&wish.file)?.into_string(), name: Some(wish.name) };
                let lines = client.import_snapshot(&file).await?;
                let outcome = Interrupts::new()?.unless(progress::follow(lines)).await?;
                let ProgressLine::Snapshot { snapshot } = outcome else { return Err(progress::unexpected()) };
                context.output.value(&snapshot, snapshot.name.as_str())?;
            }
        }
        Ok(0)
    }
}

async fn list(context: &Context, which: List) -> Result<u8, CliError> {
    // A golden snapshot that another builds on is named also where golden ones are not listed, and a VM is asked for.
    let every = context.client.list_snapshots(None, true).await?.snapshots;
    let names: BTreeMap<SnapshotId, String> =
        every.into_iter().map(|one| (one.id, one.name.to_string())).collect();
    let list = context.client.list_snapshots(which.vm.as_ref(), which.golden).await?;
    let snapshots = &list.snapshots;
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|one| {
            let parent = one.parent_snapshot.as_ref();
            vec![
                one.name.to_string(),
                one.vm_name.to_string(),
                parent
                    .map_or_else(String::new, |id| names.get(id).cloned().unwrap_or_else(|| id.to_string())),
                ByteSize(one.size_bytes).to_string(),
                format!("{:.1} ms", one.pause_ms.as_f64()),
                age(&one.created_at),
                one.description.clone(),
            ]
        })
        .collect();
    let header = ["NAME", "VM", "PARENT", "SIZE", "PAUSE", "AGE", "DESCRIPTION"];
    context.output.table(&list, &header, rows)?;
    Ok(unreadable(&list.unreadable))
}

/// Names the snapshots that cannot be read, with the way out, and gives the exit code of the list.
fn unreadable(all: &[Unreadable]) -> u8 {
    if !all.is_empty() {
        say(
            "a snapshot that cannot be read is removed with `microvm snapshot rm ID`, if no copy of its `manifest.json` can be put back",
        );
    }
    whole("the snapshot", all)
}

/// One line per snapshot, children below their parents.
fn tree(snapshots: &[Body]) -> String {
    fn add(text: &mut String, snapshots: &[Body], parent: Option<&SnapshotId>, depth: usize) {
        let known = |id: &SnapshotId| snapshots.iter().any(|one| one.id == *id);
        for one in snapshots {
            // One whose parent is not listed (it is golden) stands at the top.
            let own = one.parent_snapshot.as_ref().filter(|id| known(id));
            if own == parent {
                let size = ByteSize(one.size_bytes);
                text.push_str(&format!("{}{}  ({}, {size})\n", "  ".repeat(depth), one.name, one.vm_name));
                add(text, snapshots, Some(&one.id), depth + 1);
            }
        }
    }
    let mut text = String::new();
    add(&mut text, snapshots, None, 0);
    text
}

/// Verifies each, also if one cannot be; the names of those that are not whole are the outcome.
async fn verify(context: &Context, names: Vec<String>) -> Result<u8, CliError> {
    let (mut names, mut code) = (names, 0);
    if names.is_empty() {
        let all = context.client.list_snapshots(None, true).await?;
        code = whole("the snapshot", &all.unreadable);
        names = all.snapshots.into_iter().map(|one| one.name.to_string()).collect();
    }
    let (mut damaged, mut failed) = (Vec::new(), None);
    let mut reports = BTreeMap::new();
    for name in names {
        let report = match context.client.verify_snapshot(&name).await {
            Ok(report) => report,
            Err(error) => {
                keep_first(&mut failed, error, context);
                continue;
            }
        };
        if !context.output.is_json() {
            let verdict =
                report.error.clone().unwrap_or_else(|| "every byte is as it was written".to_owned());
            context.output.line(&format!("{name}: {verdict}"))?;
        }
        if !report.valid {
            damaged.push(name.clone());
        }
        reports.insert(name, report);
    }
    if context.output.is_json() {
        context.output.json(&reports)?;
    }
    if damaged.is_empty() {
        return failed.map_or(Ok(code), Err);
    }
    if let Some(error) = failed {
        // Damage is the graver of the two, and has the exit code.
        error.tell(context.output.format);
    }
    let detail = format!(
        "damaged: {}; remove them with `microvm snapshot rm --cascade`, nothing can be restored from them",
        damaged.join(", ")
    );
    Err(CliError::new(ErrorKind::Internal, "damaged", detail))
}

async fn remove(context: &Context, which: Remove) -> Result<u8, CliError> {
    let remove = async |snapshot: &String| context.client.remove_snapshot(snapshot, which.cascade).await;
    each_name(context, which.snapshots, remove).await
}

async fn stats(context: &Context) -> Result<u8, CliError> {
    let all = context.client.snapshot_statistics().await?;
    let none = || "-".to_owned();
    let rows = [
        ("snapshots", all.total_snapshots.to_string()),
        ("golden snapshots", all.golden_snapshots.to_string()),
        ("size", ByteSize(all.total_size_bytes).to_string()),
        ("size of golden snapshots", ByteSize(all.golden_size_bytes).to_string()),
        ("size of hibernated memory", ByteSize(all.hibernation_size_bytes).to_string()),
        ("VMs with snapshots", all.vms_with_snapshots.to_string()),
        ("oldest", all.oldest_snapshot.clone().unwrap_or_else(none)),
        ("newest", all.newest_snapshot.clone().unwrap_or_else(none)),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    context.output.table(&all, &["WHAT", "VALUE"], rows)?;
    if all.unreadable_snapshots > 0 {
        say(&format!("{} snapshots cannot be read and are not counted", all.unreadable_snapshots));
    }
    Ok(if all.unreadable_snapshots == 0 { 0 } else { FAULTY })
}
