//! `microvm bench`: this installation against the floor of this host.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use microvm_bench::{BareHost, BenchError, Report, Scene};
use microvm_driver_host::SystemClock;
use microvm_driver_qemu::Qemu;
use microvm_ports::Clock;
use microvm_types::ErrorKind;

use crate::error::CliError;
use crate::format::Format;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::output::Output;
use crate::settings::Settings;
use crate::{autostart, wiring};

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
    /// How often boots, restores, pools and runs succeed; only if named
    Reliability,
    /// Requests per second of the server and the time of each, with many at once; only if named
    Load,
}

impl From<Part> for microvm_bench::Part {
    fn from(part: Part) -> Self {
        match part {
            Part::Boot => Self::Boot,
            Part::Channel => Self::Channel,
            Part::Footprint => Self::Footprint,
            Part::Fork => Self::Fork,
            Part::Pool => Self::Pool,
            Part::Density => Self::Density,
            Part::Reliability => Self::Reliability,
            Part::Load => Self::Load,
        }
    }
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
  microvm bench reliability --tries 200
  microvm bench load --concurrency 64 --seconds 30
  microvm bench --output json > bench.json")]
pub(crate) struct Bench {
    /// Parts to run; all but `reliability` and `load` if absent
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Boots and transfers measured of each kind, after one that is dropped
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// VMs to live at once in the part `density`
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    count: u32,
    /// Boots, restores, acquires and runs to try in the part `reliability`
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tries: u32,
    /// Requests under way at once in the part `load`
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    concurrency: u32,
    /// Seconds that each kind of request is sent for in the part `load`
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Also measure how forks grow with their count, with memory and with what has changed (takes long)
    #[arg(long)]
    full: bool,
    /// Also write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Bench {
    pub(crate) async fn run(self, settings: Settings, format: Format) -> Result<u8, CliError> {
        let client = autostart::connected(&settings).await?;
        let scene = Scene {
            client,
            bare: bare_host(&settings).await?,
            root: settings.root,
            rounds: self.rounds,
            count: self.count,
            tries: self.tries,
            concurrency: self.concurrency,
            seconds: self.seconds,
            full: self.full,
            notice: Box::new(say),
        };
        let parts: Vec<microvm_bench::Part> = self.parts.iter().map(|part| (*part).into()).collect();
        let measure = async { Ok(scene.measure(&parts).await?) };
        let measured = Interrupts::new()?.unless(measure).await;
        // In any case: a bench that fails or is interrupted leaves no VM behind.
        let tidied = scene.tidy().await;
        let report = measured?;
        tidied?;
        if let Some(path) = &self.save {
            let text =
                serde_json::to_vec_pretty(&report).map_err(|error| failed("writing the report", &error))?;
            std::fs::write(path, text).map_err(|error| CliError::file("writing", path, &error))?;
        }
        print(&report, Output::new(format))?;
        Ok(u8::from(!report.all_reached()))
    }
}

async fn bare_host(settings: &Settings) -> Result<BareHost, CliError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let stores = wiring::open_stores(settings, Arc::clone(&clock)).await;
    let stores = stores.map_err(|error| failed("opening the stores", &format!("{error:#}")))?;
    let config =
        wiring::qemu_config().map_err(|error| failed("reading the settings", &format!("{error:#}")))?;
    let (images, disks) = (Arc::new(stores.images), Arc::new(stores.disks));
    Ok(BareHost {
        images: Arc::clone(&images) as _,
        kernels: images,
        disks: Arc::clone(&disks) as _,
        snapshots: disks,
        qemu: Qemu::new(config),
        connector: Arc::new(wiring::connector()),
        clock,
    })
}

fn print(report: &Report, output: Output) -> Result<(), CliError> {
    if !output.is_json() {
        output.line(&report.host.to_string())?;
    }
    output.table(report, &Report::HEADER, report.cells())
}

/// An error of the bench itself.
fn failed(doing: &str, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ErrorKind::Internal, "bench_failed", format!("{doing} failed: {error}"))
}

impl From<BenchError> for CliError {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Client(error) => error.into(),
            host @ BenchError::Host { .. } => {
                Self::new(ErrorKind::Internal, "bench_failed", host.to_string())
            }
        }
    }
}
