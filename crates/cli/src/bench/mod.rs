//! `microvm bench`: every promised number, beside the floor it is held against, measured in the same run.
//!
//! A shared machine makes absolute times mean little; ratios to the floor are what we hold ourselves to. Rounds of floor
//! and product take turns, the first round is dropped, and what is printed says on what host it was measured.

mod bare;
mod bare_child;
mod boot;
mod channel;
mod density;
mod dirt;
mod footprint;
mod fork;
mod growth;
mod host;
mod pause;
mod pool;
mod report;
mod samples;
mod saved;
mod tidy;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use microvm_types::ErrorKind;

use crate::autostart;
use crate::error::CliError;
use crate::format::Format;
use crate::interrupts::Interrupts;
use crate::output::Output;
use crate::settings::Settings;
use report::{Report, Row};

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Cold boots with each kernel, one and two at once
    Boot,
    /// Ping, exec and file transfer
    Channel,
    /// Memory and start times of server and command line
    Footprint,
    /// Pause of a live branch, forks to their first answer, memory of children, snapshots
    Fork,
    /// VMs handed out of a pool
    Pool,
    /// As many living VMs as the host can hold
    Density,
}

/// Measure this installation against the floor of this host
#[derive(Debug, Args)]
#[command(after_help = "\
Runs on the usual server and images; VMs it makes are deleted. Takes some minutes.

Examples:
  microvm bench
  microvm bench channel --rounds 3
  microvm bench fork pool density --count 100
  microvm bench fork --full
  microvm bench --output json > bench.json")]
pub(crate) struct Bench {
    /// Parts to run; all if absent
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Boots and transfers measured of each kind, after one that is dropped
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// VMs to live at once in the part `density`
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    count: u32,
    /// Also measure how forks grow with their count, with memory and with what has changed (takes long)
    #[arg(long)]
    full: bool,
    /// Also write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// What all parts need.
struct Scene {
    settings: Settings,
    client: microvm_client::Client,
    bare: bare::BareHost,
    rounds: u32,
    /// VMs of the part `density`.
    count: u32,
    /// Also what takes long.
    full: bool,
}

impl Bench {
    pub(crate) async fn run(self, settings: Settings, format: Format) -> Result<u8, CliError> {
        let client = autostart::connected(&settings).await?;
        let bare = bare::BareHost::open(&settings).await?;
        let scene = Scene { settings, client, bare, rounds: self.rounds, count: self.count, full: self.full };
        let measured = Interrupts::new()?.unless(self.parts(&scene)).await;
        // In any case: a bench that fails or is interrupted leaves no VM behind.
        let tidied = tidy::all(&scene).await;
        let rows = measured?;
        tidied?;
        let report = Report { host: host::stamp(&scene).await?, rounds: self.rounds, rows };
        if let Some(path) = &self.save {
            let text =
                serde_json::to_vec_pretty(&report).map_err(|error| failed("writing the report", &error))?;
            std::fs::write(path, text).map_err(|error| CliError::file("writing", path, &error))?;
        }
        report.print(Output::new(format))?;
        Ok(u8::from(!report.all_reached()))
    }

    async fn parts(&self, scene: &Scene) -> Result<Vec<Row>, CliError> {
        let wanted = |part| self.parts.is_empty() || self.parts.contains(&part);
        let mut rows = Vec::new();
        if wanted(Part::Boot) {
            rows.extend(boot::measure(scene).await?);
        }
        if wanted(Part::Channel) {
            rows.extend(channel::measure(scene).await?);
        }
        if wanted(Part::Footprint) {
            rows.extend(footprint::measure(scene).await?);
        }
        if wanted(Part::Fork) {
            rows.extend(pause::measure(scene).await?);
            rows.extend(fork::measure(scene).await?);
            rows.push(saved::measure(scene).await?);
            if self.full {
                rows.extend(growth::measure(scene).await?);
            }
        }
        if wanted(Part::Pool) {
            rows.extend(pool::measure(scene).await?);
        }
        if wanted(Part::Density) {
            rows.extend(density::measure(scene).await?);
        }
        Ok(rows)
    }
}

/// An error of the bench itself.
fn failed(doing: &str, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ErrorKind::Internal, "bench_failed", format!("{doing} failed: {error}"))
}
