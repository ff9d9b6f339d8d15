//! `microvm fork`: children of a running VM.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use microvm_api::Vm;
use microvm_api::output::Outputs;
use microvm_api::snapshot::ForkVm;
use microvm_client::sandbox::{ChildRun, CommandFailure, ForkAndRun, numbered};
use microvm_types::VmRef;
use microvm_types::exec::ExecRequest;
use serde::Serialize;

use crate::context::Context;
use crate::duration;
use crate::environment::Environment;
use crate::error::CliError;
use crate::format::number;
use crate::interrupts::Interrupts;
use crate::left_out;
use crate::leftovers;
use crate::notice::say;
use crate::pairs::pair;
use crate::progress;
use crate::session::outputs;

/// Shown while the children are made.
const FORKING: &str = "forking the VM";

/// Fork a running VM into children with its memory, processes and files; the VM keeps running
#[derive(Debug, Args)]
#[command(after_help = concat!("\
Without a command the children stay and their names are printed. With a command it runs in each child,
", number!(), " being the child's number from 1, and the children are deleted. A signal to
this program is passed on to every command, which then has ten seconds to exit.

Examples:
  microvm fork dev --count 10 --name try-", number!(), "
  microvm fork dev --count 50 --parallel 4 -- python3 evaluate.py --seed '", number!(), "'
  microvm fork dev --count 3 -e SEED='", number!(), "' --out ./results -- sh -c 'try > /workspace/output/log'
  microvm fork dev --commands ./commands.txt      one child for each line, which `sh -c` runs

Exit code with a command: 0 if every child's is 0, else the first one that is not."))]
pub(crate) struct Fork {
    /// Name or id of the VM
    vm: VmRef,
    /// Number of children
    #[arg(long, short = 'n', default_value_t = 1, conflicts_with = "commands")]
    count: usize,
    #[arg(long, help = concat!("Names of the children; ", number!(), " stands for the number"))]
    name: Option<String>,
    /// Label of the new VMs
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Kill the command and all its children after this time (exit code 124)
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "runs")]
    timeout: Option<Duration>,
    #[command(flatten)]
    environment: Environment,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR", requires = "runs")]
    workdir: Option<String>,
    /// Directory for what the commands leave in /workspace/output: DIR/1 for the first child, and so on
    #[arg(long = "out", value_name = "DIR", requires = "runs")]
    out_directory: Option<PathBuf>,
    /// Run so many commands at once at most [default: all]
    #[arg(long, value_name = "COUNT", requires = "runs")]
    parallel: Option<NonZeroUsize>,
    /// Keep the children after the command
    #[arg(long, requires = "runs")]
    keep: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// File with one command on each line, for one child each; `sh -c` runs it, # begins a comment
    #[arg(long, value_name = "FILE", group = "runs")]
    commands: Option<PathBuf>,
    /// Program and arguments to run in each child
    #[arg(trailing_var_arg = true, value_name = "COMMAND", group = "runs")]
    command: Vec<String>,
}

/// Outcome of the command in one child.
#[derive(Serialize)]
struct Outcome {
    number: usize,
    vm: Vm,
    exit_code: u8,
    duration_ms: u64,
    #[serde(flatten)]
    outputs: Outputs,
    /// Reason why it could not run; absent if it ran.
    error: Option<String>,
}

impl Fork {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let commands = self.commands()?;
        let environment = self.environment.all()?;
        // Before the children are made: no command runs for results that have no place.
        if let Some(folder) = &self.out_directory {
            std::fs::create_dir_all(folder).map_err(|error| CliError::file("making", folder, &error))?;
        }
        if commands.is_empty() && !environment.is_empty() {
            let detail =
                "--env and --env-file are for a command, and there is none: give one, or leave them out";
            return Err(CliError::invalid("no_command", detail));
        }
        let mut interrupts = Interrupts::new()?;
        if commands.is_empty() {
            return self.children(context, &mut interrupts).await;
        }
        let work = self.work(&commands, &environment);
        let forking = interrupts.unless(async { Ok(work.fork(&context.client, &self.vm).await?) });
        let children = progress::while_waiting(FORKING, self.quiet, forking).await?;
        let done = work.run(&context.client, children, &mut interrupts).await;
        leftovers::tell(done.leftovers);
        // What was left out of a copy is told, also of those that ended before a signal came.
        let outcomes: Vec<Outcome> = done.children.into_iter().map(Outcome::of).collect();
        if let Some(signal) = done.ended_by {
            return Err(CliError::Interrupted(signal));
        }
        let code = outcomes.iter().map(|one| one.exit_code).find(|code| *code != 0).unwrap_or(0);
        show(context, &outcomes)?;
        Ok(code)
    }

    /// Makes children that stay, and prints their names.
    async fn children(&self, context: &Context, interrupts: &mut Interrupts) -> Result<u8, CliError> {
        let request = ForkVm {
            count: self.count,
            name: self.name.clone(),
            labels: self.labels.iter().cloned().collect(),
            ..ForkVm::default()
        };
        let forking = interrupts.unless(async { Ok(context.client.fork_vm(&self.vm, &request).await?) });
        let forked = progress::while_waiting(FORKING, self.quiet, forking).await?;
        if context.output.is_json() {
            context.output.json(&forked)?;
        } else {
            let names: Vec<&str> = forked.vms.iter().map(|vm| vm.name.as_str()).collect();
            context.output.line(&names.join("\n"))?;
        }
        Ok(0)
    }

    /// The command of each child; empty: there is none to run.
    fn commands(&self) -> Result<Vec<Vec<String>>, CliError> {
        let Some(path) = &self.commands else {
            let count = if self.command.is_empty() { 0 } else { self.count };
            return Ok(vec![self.command.clone(); count]);
        };
        let text = std::fs::read_to_string(path).map_err(|error| CliError::file("reading", path, &error))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let commands: Vec<Vec<String>> =
            lines.map(|line| ["sh", "-c", line].map(str::to_owned).to_vec()).collect();
        if commands.is_empty() {
            let detail = format!("{} holds no command: write one on each line", path.display());
            return Err(CliError::invalid("no_command", detail));
        }
        Ok(commands)
    }

    /// The commands with the number of their child, and what becomes of the children.
    fn work(&self, commands: &[Vec<String>], environment: &BTreeMap<String, String>) -> ForkAndRun {
        let request = |command: &Vec<String>| ExecRequest {
            command: command.clone(),
            environment: environment.clone(),
            working_directory: self.workdir.clone(),
            timeout_ms: self.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..ExecRequest::default()
        };
        let requests = commands.iter().enumerate();
        ForkAndRun {
            commands: requests.map(|(index, command)| numbered(&request(command), index + 1)).collect(),
            name: self.name.clone(),
            labels: self.labels.iter().cloned().collect(),
            output: self.out_directory.clone(),
            at_once: self.parallel,
            keep: self.keep,
        }
    }
}

impl Outcome {
    fn of(run: ChildRun) -> Self {
        let (mut exit_code, mut error) = match run.ended {
            Ok(status) => (status.shell_code(), None),
            Err(failure) => {
                let failure = match failure {
                    CommandFailure::Start(error) => CliError::not_started(error),
                    CommandFailure::Prepare(error) | CommandFailure::Lost(error) => error.into(),
                };
                (failure.exit_code(), Some(failure.detail()))
            }
        };
        // The command's own exit code is never replaced.
        let mut copied = |code| exit_code = if exit_code == 0 { code } else { exit_code };
        match run.fetched {
            Some(Ok(moved)) => copied(left_out::tell(&moved)),
            Some(Err(failure)) => {
                let failure = CliError::from(failure);
                copied(failure.exit_code());
                error = Some(format!("the output was not copied: {}", failure.detail()));
            }
            None => {}
        }
        let outputs = outputs(run.output, "let the command write more than 10 MB to a file");
        Self { number: run.number, vm: run.vm, exit_code, duration_ms: run.duration_ms, outputs, error }
    }
}

/// Prints the outcomes, and what failed on standard error.
fn show(context: &Context, outcomes: &[Outcome]) -> Result<(), CliError> {
    for outcome in outcomes {
        if let Some(error) = &outcome.error {
            say(&format!("child {}: {error}", outcome.number));
        }
    }
    let rows: Vec<Vec<String>> = outcomes
        .iter()
        .map(|one| {
            let last = |text: &str| text.trim_end().lines().last().unwrap_or_default().to_owned();
            vec![
                one.number.to_string(),
                one.vm.name.to_string(),
                one.exit_code.to_string(),
                format!("{} ms", one.duration_ms),
                last(&one.outputs.stdout),
                last(&one.outputs.stderr),
            ]
        })
        .collect();
    context.output.table(&outcomes, &["N", "VM", "EXIT", "TIME", "LAST LINE OF OUTPUT", "OF ERRORS"], rows)
}
