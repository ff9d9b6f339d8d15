//! `microvm stats`: resource use of VMs.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::Args;
use microvm_api::vm::Stats as Numbers;
use microvm_client::{ClientError, VmQuery};
use microvm_types::{ByteSize, ErrorKind, Phase, VmId, VmRef};
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Clears what follows the cursor after it went home.
const HOME: &[u8] = b"\x1b[H\x1b[J";

/// Show the resource use of VMs
#[derive(Debug, Args)]
#[command(after_help = "\
Every second, until Ctrl-C. CPU is processor time of the VM's VMM, in percent of one processor of the host; MEMORY is
used inside the guest, of its size; HOST is what the VM takes of the host's memory (shared pages by their share); READ
and WRITTEN are bytes of its disks since it started. Looking is no use of a VM: it does not keep an idle VM awake.
With `--output json` one array a line.

Examples:
  microvm stats
  microvm stats --no-stream dev")]
pub(crate) struct Stats {
    /// Names or ids of VMs [default: all that run]
    vms: Vec<VmRef>,
    /// Show all VMs, stopped ones too
    #[arg(short, long, conflicts_with = "vms")]
    all: bool,
    /// Print the numbers once
    #[arg(long)]
    no_stream: bool,
}

/// One VM at one look.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: String,
    /// Percent of one processor of the host since the look before.
    cpu_percent: Option<f64>,
    #[serde(flatten)]
    numbers: Option<Numbers>,
}

/// Processor time at the last look.
type Before = HashMap<VmId, (Instant, u64)>;

impl Stats {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut before = Before::new();
        // The first look is only what the second one is compared with.
        interrupts.unless(self.look(context, &mut before)).await?;
        let screen = !self.no_stream && !context.output.is_json() && std::io::stdout().is_terminal();
        loop {
            let look = async {
                tokio::time::sleep(INTERVAL).await;
                self.look(context, &mut before).await
            };
            let rows = match interrupts.unless(look).await {
                Err(CliError::Interrupted(_)) if !self.no_stream => return Ok(0),
                rows => rows?,
            };
            if screen {
                context.output.bytes(HOME)?;
            }
            if context.output.is_json() && !self.no_stream {
                context.output.json_line(&rows)?;
            } else {
                context.output.table(&rows, &HEADER, rows.iter().map(Row::cells))?;
            }
            if self.no_stream {
                return Ok(0);
            }
        }
    }

    async fn look(&self, context: &Context, before: &mut Before) -> Result<Vec<Row>, CliError> {
        let client = &context.client;
        let named: Vec<VmRef> = if self.vms.is_empty() {
            let states = if self.all { Vec::new() } else { vec![Phase::Running, Phase::Paused] };
            let query = VmQuery { states, ..VmQuery::default() };
            client.list_vms(&query).await?.vms.into_iter().map(|vm| VmRef::from(vm.id)).collect()
        } else {
            self.vms.clone()
        };
        let known = !before.is_empty();
        // All at once: one after the other their times would add up, and numbers beside each other would be of
        // different moments.
        let asked = named.iter().map(|vm| async move { (vm, client.stats(vm).await) });
        let mut rows = Vec::new();
        for (vm, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(numbers) => rows.push(Row::of(numbers, before)),
                // It was there: it died while it was shown. One of a list that is made anew is only left out.
                Err(ClientError::Problem(problem)) if problem.kind == ErrorKind::NotFound && known => {
                    if !self.vms.is_empty() {
                        let (name, state) = (vm.to_string(), "deleted".to_owned());
                        rows.push(Row { name, state, cpu_percent: None, numbers: None });
                    }
                }
                Err(ClientError::Problem(problem)) if problem.code == "machine_failed" => {
                    let (name, state) = (vm.to_string(), "ending".to_owned());
                    rows.push(Row { name, state, cpu_percent: None, numbers: None });
                }
                Err(ClientError::Problem(problem))
                    if problem.kind == ErrorKind::NotFound && self.vms.is_empty() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rows)
    }
}

const HEADER: [&str; 8] = ["NAME", "STATE", "CPU", "MEMORY", "HOST", "READ", "WRITTEN", "UP"];

impl Row {
    fn of(numbers: Numbers, before: &mut Before) -> Self {
        let (now, cpu_ms) = (Instant::now(), numbers.counters.cpu_ms);
        let last = before.insert(numbers.vm.clone(), (now, cpu_ms));
        let cpu_percent = last.and_then(|(then, last_ms)| {
            // Less than before: the VM has a new VMM, which counts anew.
            let used = Duration::from_millis(cpu_ms.checked_sub(last_ms)?).as_secs_f64();
            Some((used / now.duration_since(then).as_secs_f64() * 1000.0).round() / 10.0)
        });
        let runs = numbers.uptime_ms.is_some();
        Self {
            name: numbers.name.to_string(),
            state: numbers.state.to_string(),
            // Two looks at one instant divide by zero.
            cpu_percent: cpu_percent.filter(|percent| runs && percent.is_finite()),
            numbers: Some(numbers),
        }
    }

    fn cells(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let numbers = self.numbers.as_ref().filter(|numbers| numbers.uptime_ms.is_some());
        let counters = numbers.map(|numbers| &numbers.counters);
        let bytes = |bytes: Option<u64>| bytes.map_or_else(none, |bytes| ByteSize(bytes).to_string());
        let memory = numbers.and_then(|numbers| {
            let size = ByteSize::mib(numbers.memory_mib.into());
            let percent = numbers.guest.as_ref()?.memory_percent;
            Some(format!("{percent:.0}% of {size}"))
        });
        vec![
            self.name.clone(),
            self.state.clone(),
            self.cpu_percent.map_or_else(none, |percent| format!("{percent:.1}%")),
            memory.unwrap_or_else(none),
            bytes(counters.map(|counters| counters.memory_pss)),
            bytes(counters.map(|counters| counters.disk_read_bytes)),
            bytes(counters.map(|counters| counters.disk_written_bytes)),
            numbers.and_then(|numbers| numbers.uptime_ms).map_or_else(none, |up| up_time(up / 1000)),
        ]
    }
}

fn up_time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
