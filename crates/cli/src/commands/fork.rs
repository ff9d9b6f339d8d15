//! `microvm fork`: children of a running VM.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use microvm_api::Vm;
use microvm_api::output::Outputs;
use microvm_api::snapshot::ForkVm;
use microvm_client::copy::{self, Budget, OutsideLinks, Rules};
use microvm_types::exec::ExecRequest;
use microvm_types::files::FileOwner;
use microvm_types::vm::Limits;
use microvm_types::{ProcessId, VmId, VmRef};
use serde::Serialize;

use crate::claim;
use crate::context::Context;
use crate::duration;
use crate::environment::Environment;
use crate::error::CliError;
use crate::format::number;
use crate::interrupts::Interrupts;
use crate::left_out;
use crate::notice::say;
use crate::pairs::pair;
use crate::progress;
use crate::session::{Both, GRACE, collect};

/// Placeholder for the number of a child in its name and its command.
const NUMBER: &str = "{n}";
/// Directory of a guest whose content `--out` copies.
const OUTPUT: &[u8] = b"/workspace/output";
/// Seconds without use after which a child deletes itself, if this program was killed before it could delete it.
const IDLE_NET: u64 = 300;

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

/// A command under way in a child.
type Command = (VmRef, ProcessId);

/// Uses the children whose turn has not come, so that they do not take themselves for forgotten.
async fn keep_awake(context: &Context, children: &[VmId], started: &RefCell<Vec<Command>>) -> Infallible {
    loop {
        tokio::time::sleep(Duration::from_secs(IDLE_NET / 5)).await;
        let begun: Vec<VmRef> = started.borrow().iter().map(|(vm, _)| vm.clone()).collect();
        let waiting = children.iter().map(|id| VmRef::from(id.clone())).filter(|vm| !begun.contains(vm));
        // A failure is reported when the command of that child is started.
        let pings = waiting.map(|vm| async move { context.client.ping(&vm).await.map(drop) });
        let _ = futures_util::future::join_all(pings).await;
    }
}

/// Passes a signal on to the commands of all children and gives them time to end by themselves.
async fn give_time(
    context: &Context,
    started: &RefCell<Vec<Command>>,
    signal: u8,
    running: impl Future,
    interrupts: &mut Interrupts,
) {
    let commands = started.borrow().clone();
    let passing = commands.iter().map(|(vm, process)| context.client.signal(vm, process, signal));
    let ended = async {
        // One that has ended needs no signal.
        let _ = futures_util::future::join_all(passing).await;
        running.await;
    };
    tokio::select! {
        () = ended => {}
        () = tokio::time::sleep(GRACE) => {}
        _ = interrupts.next() => {}
    }
}

impl Fork {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let commands = self.commands()?;
        let environment = self.environment.all()?;
        if let Some(folder) = &self.out_directory {
            std::fs::create_dir_all(folder).map_err(|error| CliError::file("making", folder, &error))?;
        }
        let runs = !commands.is_empty();
        if !runs && !environment.is_empty() {
            let detail =
                "--env and --env-file are for a command, and there is none: give one, or leave them out";
            return Err(CliError::invalid("no_command", detail));
        }
        let mut request = ForkVm {
            count: if runs { commands.len() } else { self.count },
            name: self.name.clone(),
            labels: self.labels.iter().cloned().collect(),
            ..ForkVm::default()
        };
        if runs && !self.keep {
            request.limits = Limits { ephemeral: true, idle_seconds: Some(IDLE_NET), ..Limits::default() };
        }
        let mut interrupts = Interrupts::new()?;
        let forking = interrupts.unless(async { Ok(context.client.fork_vm(&self.vm, &request).await?) });
        let forked = progress::while_waiting("forking the VM", self.quiet, forking).await?;
        if !runs {
            if context.output.is_json() {
                context.output.json(&forked)?;
            } else {
                let names: Vec<&str> = forked.vms.iter().map(|vm| vm.name.as_str()).collect();
                context.output.line(&names.join("\n"))?;
            }
            return Ok(0);
        }
        let ids: Vec<VmId> = forked.vms.iter().map(|vm| vm.id.clone()).collect();
        let started = RefCell::new(Vec::new());
        let outcome = {
            let requests = commands
                .into_iter()
                .enumerate()
                .map(|(index, command)| self.in_child_request(index + 1, command, &environment));
            let children = forked.vms.into_iter().zip(requests).collect();
            let mut running = pin!(self.in_children(context, children, &started));
            tokio::select! {
                outcome = &mut running => outcome,
                never = keep_awake(context, &ids, &started) => match never {},
                signal = interrupts.next() => {
                    give_time(context, &started, signal, &mut running, &mut interrupts).await;
                    Err(CliError::Interrupted(signal))
                }
            }
        };
        if outcome.is_err() && !self.keep {
            for id in &ids {
                claim::delete(&context.client, id).await;
            }
        }
        let outcomes = outcome?;
        let code = outcomes.iter().map(|one| one.exit_code).find(|code| *code != 0).unwrap_or(0);
        self.show(context, &outcomes)?;
        Ok(code)
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

    /// The request of one child, with its number in the place of `{n}`.
    fn in_child_request(
        &self,
        number: usize,
        command: Vec<String>,
        environment: &BTreeMap<String, String>,
    ) -> ExecRequest {
        let numbered = |text: &String| text.replace(NUMBER, &number.to_string());
        ExecRequest {
            command: command.iter().map(numbered).collect(),
            environment: environment.iter().map(|(key, value)| (key.clone(), numbered(value))).collect(),
            working_directory: self.workdir.as_ref().map(numbered),
            timeout_ms: self.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..ExecRequest::default()
        }
    }

    /// Runs the commands, so many at once as was asked for; each child is deleted as soon as its command has ended.
    async fn in_children(
        &self,
        context: &Context,
        children: Vec<(Vm, ExecRequest)>,
        started: &RefCell<Vec<Command>>,
    ) -> Result<Vec<Outcome>, CliError> {
        let at_once = self.parallel.map_or(children.len(), NonZeroUsize::get).max(1);
        let running = children.into_iter().enumerate().map(|(index, (vm, request))| async move {
            let outcome = self.in_child(context, index + 1, vm, request, started).await;
            if !self.keep {
                claim::delete(&context.client, &outcome.vm.id).await;
            }
            outcome
        });
        let mut outcomes: Vec<Outcome> =
            futures_util::stream::iter(running).buffer_unordered(at_once).collect().await;
        outcomes.sort_by_key(|one| one.number);
        Ok(outcomes)
    }

    async fn in_child(
        &self,
        context: &Context,
        number: usize,
        vm: Vm,
        request: ExecRequest,
        started: &RefCell<Vec<Command>>,
    ) -> Outcome {
        let began = std::time::Instant::now();
        let reference = VmRef::from(vm.id.clone());
        let run = async {
            if self.out_directory.is_some() {
                context.client.make_directory(&reference, OUTPUT, Some(&FileOwner::Default)).await?;
            }
            let session = context.client.exec(&reference, &request).await.map_err(CliError::not_started)?;
            started.borrow_mut().push((reference.clone(), session.started.process.clone()));
            collect(session).await
        };
        let ended = run.await;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (mut exit_code, both, mut error) = match ended {
            Ok((status, collected)) => (status.shell_code(), collected, None),
            Err(error) => (error.exit_code(), Both::default(), Some(error.detail())),
        };
        if error.is_none()
            && let Some(folder) = &self.out_directory
        {
            match self.fetch(context, &vm, &folder.join(number.to_string())).await {
                // The command's own exit code is never replaced.
                Ok(incomplete) if exit_code == 0 => exit_code = incomplete,
                Ok(_) => {}
                Err(failure) => {
                    exit_code = if exit_code == 0 { failure.exit_code() } else { exit_code };
                    error = Some(format!("the output was not copied: {}", failure.detail()));
                }
            }
        }
        let outputs = both.outputs("let the command write more than 10 MB to a file");
        Outcome { number, vm, exit_code, duration_ms, outputs, error }
    }

    /// Copies what a child's command left; 1 if some of it could not be copied.
    async fn fetch(&self, context: &Context, vm: &Vm, to: &Path) -> Result<u8, CliError> {
        let rules = Rules { budget: Budget::chosen(None, vm.disk_mib), links: OutsideLinks::Keep };
        let id = VmRef::from(vm.id.clone());
        let moved = copy::pull_directory(&context.client, &id, OUTPUT, vm.path_style, to, rules).await?;
        Ok(left_out::tell(&moved))
    }

    fn show(&self, context: &Context, outcomes: &[Outcome]) -> Result<(), CliError> {
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
        context.output.table(
            &outcomes,
            &["N", "VM", "EXIT", "TIME", "LAST LINE OF OUTPUT", "OF ERRORS"],
            rows,
        )
    }
}
