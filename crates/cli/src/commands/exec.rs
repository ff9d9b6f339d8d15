//! `microvm exec`: a command in a running VM.

use std::time::Duration;

use clap::Args;
use microvm_api::Problem;
use microvm_api::output::Outputs;
use microvm_client::{Client, ExecSession};
use microvm_types::exec::{ExecRequest, ExitStatus, OutputOffsets, TerminalSize};
use microvm_types::files::FileOwner;
use microvm_types::{Action, ErrorKind, ProcessId, VmRef};
use serde::Serialize;
use serde_json::json;

use crate::context::Context;
use crate::detach::{DEFAULT_KEYS, DetachKeys};
use crate::environment::Environment;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::session::{self, Wiring};
use crate::{duration, terminal};

/// Time for the server to tell its limits.
const LONGEST_QUESTION: Duration = Duration::from_secs(5);

/// Number of the signal that cannot be ignored.
const SIGKILL: u8 = 9;

/// Options of a command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Command")]
pub(crate) struct CommandOptions {
    /// Forward standard input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    environment: Environment,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, or user:group
    #[arg(short, long)]
    user: Option<String>,
    /// Kill the command and all its children after this time (exit code 124): at most an hour, if the server has no other limit
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
}

impl CommandOptions {
    /// Owner of the files that the command is to work with: the user whom it runs as.
    pub(crate) fn owner(&self) -> FileOwner {
        self.user.clone().map_or(FileOwner::Default, FileOwner::Named)
    }

    /// Refuses a time limit above the server's, before anything is made for the command, where the server tells it.
    pub(crate) async fn admit(&self, client: &Client) -> Result<(), CliError> {
        let Some(asked) = self.timeout else { return Ok(()) };
        // Without permission or without an answer this goes on: the server checks the command itself.
        let Ok(Ok(info)) = tokio::time::timeout(LONGEST_QUESTION, client.host_info()).await else {
            return Ok(());
        };
        // An older server has no such limit.
        let most = info.limits.and_then(|limits| limits.command_seconds);
        let Some(most) = most.filter(|most| asked > Duration::from_secs(*most)) else { return Ok(()) };
        let asked = asked.as_secs_f64();
        let detail =
            format!("--timeout: {asked} s is more than the limit of {most} s for a command: ask for less");
        let problem = Problem::new(ErrorKind::Invalid, "over_limit", detail);
        Err(problem.with_remedies(vec![Action::RaiseLimit.of("timeout_ms")]).into())
    }

    /// The request; the terminal of a command that nobody reads has the usual size until somebody attaches.
    pub(crate) fn request(&self, command: Vec<String>, detach: bool) -> Result<ExecRequest, CliError> {
        let size = terminal::size().or_else(|| detach.then(TerminalSize::default));
        if self.tty && size.is_none() {
            let detail = "there is no terminal here: leave out -t";
            return Err(CliError::invalid("no_terminal", detail));
        }
        let mut environment = self.environment.all()?;
        if self.tty {
            let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            // One that was given with --env wins.
            environment.entry("TERM".to_owned()).or_insert(term);
        }
        Ok(ExecRequest {
            command,
            environment,
            working_directory: self.workdir.clone(),
            user: self.user.clone(),
            terminal: size.filter(|_| self.tty),
            stdin: self.interactive || self.tty,
            timeout_ms: self.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            detach,
            unlisted: false,
        })
    }
}

/// Run a command in a running VM, or attach to one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm exec dev uname -a
  microvm exec -it dev bash
  microvm exec -d dev ./server             prints the id of the process
  microvm exec -dit dev bash               a terminal in the background, for `attach`
  microvm exec dev --attach PROCESS        continues its output

Exit code: that of the command; 124 after a time-out; 128+n if signal n ended it; 125 for errors of microvm; 126 if the
command cannot be executed; 127 if it (or its user or working directory) does not exist.")]
pub(crate) struct Exec {
    /// Name or id of the VM
    vm: VmRef,
    #[command(flatten)]
    options: CommandOptions,
    /// Run in the background and print the process id; `attach` gives it this terminal and standard input
    #[arg(short, long)]
    detach: bool,
    /// Attach to a process by its id instead of starting one
    #[arg(long, value_name = "PROCESS", conflicts_with_all = ["command", "detach"])]
    attach: Option<ProcessId>,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", default_value = DEFAULT_KEYS)]
    detach_keys: DetachKeys,
    /// Program and arguments; what follows the program belongs to it
    #[arg(trailing_var_arg = true, required_unless_present = "attach", value_name = "COMMAND")]
    command: Vec<String>,
}

/// The output of `--output json`.
#[derive(Serialize)]
struct Ended {
    exit_code: u8,
    exit: ExitStatus,
    process: ProcessId,
    #[serde(flatten)]
    outputs: Outputs,
}

impl Exec {
    /// A command with its streams here.
    pub(crate) fn of(vm: VmRef, options: CommandOptions, command: Vec<String>) -> Self {
        let (detach, attach, detach_keys) = (false, None, DetachKeys::default());
        Self { vm, options, detach, attach, detach_keys, command }
    }

    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let client = &context.client;
        let session = match &self.attach {
            Some(process) => client.attach(&self.vm, process, OutputOffsets::default()).await?,
            None => {
                let request = self.options.request(self.command, self.detach)?;
                client.exec(&self.vm, &request).await.map_err(CliError::not_started)?
            }
        };
        if self.detach {
            let started = &session.started;
            let value = json!({ "process": started.process, "pid": started.pid });
            context.output.value(&value, started.process.as_str())?;
            return Ok(0);
        }
        let wiring = Wiring {
            stdin: self.options.interactive,
            terminal: self.options.tty,
            collect: context.output.is_json(),
            detach_keys: Some(self.detach_keys),
        };
        let whose = if self.attach.is_none() { Whose::Ours } else { Whose::Others };
        to_its_end(context, &self.vm, session, wiring, &mut interrupts, whose).await
    }
}

/// Starter of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This program: it does not outlive the end of our streams.
    Ours,
    /// Somebody before.
    Others,
}

/// Connects our streams to a command until it ends or is detached from; the exit code.
pub(crate) async fn to_its_end(
    context: &Context,
    vm: &VmRef,
    session: ExecSession,
    wiring: Wiring,
    interrupts: &mut Interrupts,
    whose: Whose,
) -> Result<u8, CliError> {
    let client = &context.client;
    let process = session.started.process.clone();
    let outcome = session::stream(client, vm, session, wiring, interrupts).await;
    if matches!(outcome, Err(CliError::Detached)) {
        say(&format!(
            "detached; `microvm attach {vm} {process}` attaches again. A command that was started without -d waits while 1 MiB of \
             its output is unread"
        ));
        return Ok(0);
    }
    // A command whose output is no longer read, or whose input broke off, would block for ever.
    if whose == Whose::Ours && outcome.as_ref().is_err_and(CliError::is_of_this_side) {
        // If the VM is gone, so is the command.
        let _ = client.signal(vm, &process, SIGKILL).await;
    }
    let (status, collected) = outcome?;
    if context.output.is_json() {
        let rest = format!(
            "`microvm logs {vm} {process}` shows the last MiB of each for some minutes; without `--output json` all is printed"
        );
        let exit_code = status.shell_code();
        context.output.json(&Ended {
            exit_code,
            exit: status,
            process,
            outputs: session::outputs(collected, &rest),
        })?;
    }
    if status.timed_out {
        say("the command was killed because its time was up");
    }
    Ok(status.shell_code())
}
