//! `microvm system`: disk space of the server, and making room.

use std::io::{BufRead as _, IsTerminal as _};

use clap::{Args, Subcommand};
use microvm_api::disk_usage::{DiskUsage, PruneSystem, PrunedSystem, StoredPart};
use microvm_types::{ByteSize, ErrorKind};

use crate::commands::info::Info;
use crate::context::Context;
use crate::error::CliError;
use crate::notice::say;
use crate::output::FAULTY;

/// Verbs for the server's disk space.
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show what takes disk space
    Df(Df),
    /// Remove what nothing uses
    Prune(Prune),
    /// Show the server, its host and what it has
    #[command(hide = true)]
    Info(Info),
    /// Print counters of the server, as Prometheus reads them
    #[command(hide = true)]
    Metrics,
}

/// Show what takes disk space
#[derive(Debug, Args)]
#[command(after_help = "\
Every file counts once: a layer that ten VMs share is one layer. RECLAIMABLE is what `microvm system prune --all`
would free at least.")]
pub(crate) struct Df {
    /// Also list every image, VM, snapshot, layer …
    #[arg(short, long)]
    verbose: bool,
}

/// Remove what nothing uses
#[derive(Debug, Args)]
#[command(after_help = "\
Removed are images without a name that no VM or snapshot needs, golden snapshots that no template leads to and that
were not used for 30 days, leftovers, and ssh keys of deleted VMs. VMs stay, stopped ones too, and so do snapshots
that somebody took. Image builds and VMs being created keep what they use.

Examples:
  microvm system prune --dry-run
  microvm system prune --all -y")]
pub(crate) struct Prune {
    /// Also remove what can be made or fetched again: images that no VM, snapshot, pool or template needs, all golden
    /// snapshots, memory of snapshots, fetched packages
    #[arg(short, long)]
    all: bool,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short = 'y', long = "yes", alias = "force", short_alias = 'f')]
    yes: bool,
}

impl System {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Df(command) => command.run(context).await,
            Self::Prune(command) => command.run(context).await,
            Self::Metrics => {
                context.output.bytes(&context.client.metrics().await?.bytes)?;
                Ok(0)
            }
            // Another spelling of a verb of its own, which was called before this.
            Self::Info(_) => Ok(0),
        }
    }
}

impl Df {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let usage = context.client.disk_usage().await?;
        let size = |bytes| ByteSize(bytes).to_string();
        let row = |part: &StoredPart| {
            vec![
                part.kind.label().to_owned(),
                part.count.to_string(),
                part.active.to_string(),
                size(part.bytes),
                share(part.reclaimable_bytes, part.bytes),
            ]
        };
        let total = vec![
            "total".to_owned(),
            String::new(),
            String::new(),
            size(usage.bytes),
            share(usage.reclaimable_bytes, usage.bytes),
        ];
        let rows = usage.parts.iter().map(row).chain([total]);
        context.output.table(&usage, &["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], rows)?;
        if self.verbose && !context.output.is_json() {
            context.output.line("")?;
            items(context, &usage)?;
        }
        Ok(0)
    }
}

/// Bytes, and their part of all in percent.
fn share(bytes: u64, all: u64) -> String {
    let percent = bytes.saturating_mul(100) / all.max(1);
    if bytes == 0 { ByteSize(0).to_string() } else { format!("{} ({percent}%)", ByteSize(bytes)) }
}

fn items(context: &Context, usage: &DiskUsage) -> Result<(), CliError> {
    let all = usage.parts.iter().flat_map(|part| part.items.iter().map(move |item| (part, item)));
    let rows = all.map(|(part, item)| {
        let used = if item.active { "yes" } else { "no" };
        let size = ByteSize(item.bytes).to_string();
        vec![part.kind.label().to_owned(), item.name.clone(), short(&item.id), size, used.to_owned()]
    });
    context.output.table(&usage.parts, &["TYPE", "NAME", "ID", "SIZE", "USED"], rows)
}

/// The beginning of an id, as other tables show it.
fn short(id: &str) -> String {
    id.chars().take(20).collect()
}

impl Prune {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let query = PruneSystem { all: self.all, dry_run: true };
        if self.dry_run {
            let found = context.client.prune_system(&query).await?;
            return print(context, &found);
        }
        if !self.yes {
            let found = context.client.prune_system(&query).await?;
            if !asked(&found)? {
                return Ok(FAULTY);
            }
        }
        // Found anew, not what was shown: things that only those removed have used go as well.
        let done = context.client.prune_system(&PruneSystem { dry_run: false, ..query }).await?;
        print(context, &done)
    }
}

/// Shows on the terminal what would go, and asks.
fn asked(found: &PrunedSystem) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        let detail = "there is no terminal to ask on: give -y to remove without being asked, or --dry-run to see what would go";
        return Err(CliError::new(ErrorKind::Invalid, "not_confirmed", detail));
    }
    for item in &found.removed {
        say(&format!("{}: {} ({})", item.kind.label(), item.name, ByteSize(item.bytes)));
    }
    say(&format!(
        "remove all of it, at least {}, and what becomes unused then? [y/N]",
        ByteSize(found.bytes)
    ));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| {
        CliError::new(ErrorKind::Invalid, "not_confirmed", format!("the answer cannot be read: {error}"))
    })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(context: &Context, pruned: &PrunedSystem) -> Result<u8, CliError> {
    if context.output.is_json() {
        context.output.json(pruned)?;
    } else {
        let rows: Vec<Vec<String>> = pruned
            .removed
            .iter()
            .map(|one| vec![one.kind.label().to_owned(), one.name.clone(), ByteSize(one.bytes).to_string()])
            .collect();
        if !rows.is_empty() {
            context.output.table(pruned, &["TYPE", "NAME", "SIZE"], rows)?;
        }
        let verb = if pruned.dry_run { "at least would be freed" } else { "freed" };
        context.output.line(&format!("{} {verb}", ByteSize(pruned.bytes)))?;
    }
    for one in &pruned.kept {
        say(&format!("{} stay: {}", one.name, one.reason));
    }
    Ok(if pruned.kept.is_empty() { 0 } else { FAULTY })
}
