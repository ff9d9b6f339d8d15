//! `microvm fork`: children of a running VM.

use std::cell::RefCell;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use microvm_api::Vm;
use microvm_api::output::Outputs;
use microvm_api::snapshot::ForkVm;
use microvm_types::exec::ExecRequest;
use microvm_types::vm::Limits;
use microvm_types::{ProcessId, VmId, VmRef};
use serde::Serialize;

use crate::claim;
use crate::commands::machine::pair;
use crate::context::Context;
use crate::duration;
use crate::error::CliError;
use crate::format::number;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::session::{Both, GRACE, collect};

/// Placeholder for the number of a child in its name and its command.
const NUMBER: &str = "{n}";
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
  microvm fork dev --count 50 -- python3 evaluate.py --seed '", number!(), "'

Exit code with a command: 0 if every child's is 0, else the first one that is not."))]
pub(crate) struct Fork {
    /// Name or id of the VM
    vm: VmRef,
    /// Number of children
    #[arg(long, short = 'n', default_value_t = 1)]
    count: usize,
    #[arg(long, help = concat!("Names of the children; ", number!(), " stands for the number"))]
    name: Option<String>,
    /// Label to filter by
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Kill the command and all its children after this time (exit code 124)
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "command")]
    timeout: Option<Duration>,
    /// Keep the children after the command
    #[arg(long, requires = "command")]
    keep: bool,
    /// Program and arguments to run in each child
    #[arg(last = true, value_name = "COMMAND")]
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
        let runs = !self.command.is_empty();
        let mut request = ForkVm {
            count: self.count,
            name: self.name.clone(),
            labels: self.labels.iter().cloned().collect(),
            ..ForkVm::default()
        };
        if runs && !self.keep {
            request.limits = Limits { ephemeral: true, idle_seconds: Some(IDLE_NET), ..Limits::default() };
        }
        let mut interrupts = Interrupts::new()?;
        let forking = async { Ok(context.client.fork_vm(&self.vm, &request).await?) };
        let forked = interrupts.unless(forking).await?;
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
            let mut running = pin!(self.in_children(context, forked.vms, &started));
            tokio::select! {
                outcome = &mut running => outcome,
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

    /// Runs the command in all children at once; each is deleted as soon as its command has ended.
    async fn in_children(
        &self,
        context: &Context,
        vms: Vec<Vm>,
        started: &RefCell<Vec<Command>>,
    ) -> Result<Vec<Outcome>, CliError> {
        let mut running = FuturesUnordered::new();
        for (index, vm) in vms.into_iter().enumerate() {
            running.push(async move {
                let outcome = self.in_child(context, index + 1, vm, started).await;
                if !self.keep {
                    claim::delete(&context.client, &outcome.vm.id).await;
                }
                outcome
            });
        }
        let mut outcomes = Vec::new();
        while let Some(outcome) = running.next().await {
            outcomes.push(outcome);
        }
        outcomes.sort_by_key(|one| one.number);
        Ok(outcomes)
    }

    async fn in_child(
        &self,
        context: &Context,
        number: usize,
        vm: Vm,
        started: &RefCell<Vec<Command>>,
    ) -> Outcome {
        let command = self.command.iter().map(|word| word.replace(NUMBER, &number.to_string())).collect();
        let request = ExecRequest {
            command,
            timeout_ms: self.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..ExecRequest::default()
        };
        let began = std::time::Instant::now();
        let run = async {
            let reference = VmRef::from(vm.id.clone());
            let session = context.client.exec(&reference, &request).await?;
            started.borrow_mut().push((reference, session.started.process.clone()));
            collect(session).await
        };
        let ended = run.await;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (exit_code, both, error) = match ended {
            Ok((status, collected)) => (status.shell_code(), collected, None),
            Err(error) => (error.exit_code(), Both::default(), Some(error.detail())),
        };
        let outputs = both.outputs("let the command write more than 10 MB to a file");
        Outcome { number, vm, exit_code, duration_ms, outputs, error }
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
