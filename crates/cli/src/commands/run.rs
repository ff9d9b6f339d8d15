//! `microvm run`: a new VM for one command.

use std::cell::Cell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use microvm_api::image::Image;
use microvm_api::milliseconds::Seconds;
use microvm_api::output::Outputs;
use microvm_api::{Problem, Vm};
use microvm_client::Client;
use microvm_client::copy::Moved;
use microvm_client::sandbox::{self, Claim, Creation, Gathered, Script, Workspace};
use microvm_types::exec::{ExecRequest, ExitStatus};
use microvm_types::files::LeftOut;
use microvm_types::{ByteSize, Name, VmRef};
use serde::Serialize;

use crate::commands::exec::CommandOptions;
use crate::commands::machine::MachineOptions;
use crate::context::Context;
use crate::error::{CliError, NO_PROGRAM};
use crate::forwarding::{Forwarding, PortPair};
use crate::interrupts::Interrupts;
use crate::left_out;
use crate::leftovers;
use crate::notice::say;
use crate::progress;
use crate::session::{self, Wiring};

/// Shown while a VM is made.
pub(crate) const CREATING: &str =
    "creating the VM; the first one of a template boots and is saved, later ones are forked";

/// Run a command in a new VM, then delete the VM
#[derive(Debug, Args)]
#[command(after_help = "\
The VM is deleted when the command ends. If this program gets a signal or loses its terminal, the command gets the
signal and ten seconds to exit before it is killed.

--in fills /workspace/input before the command, --out fetches /workspace/output after it; /workspace/work is for
anything else. All three belong to the user that the command runs as. --tools has programs and libraries of this host at
/tools, which no program in the VM can change.

The first word that is no option is the command; all words after it belong to it. A first word that names a file of
this host ending in .py, .js or .sh is copied to /workspace and run by python3, node or sh. The image is chosen by
--image only. The image's entry point (ENTRYPOINT) gets the command as its arguments; without a command it gets the
image's (CMD). Without -t, Ctrl-C interrupts the command; a second Ctrl-C aborts it.

Examples:
  microvm run python3 -c 'print(6*7)'
  microvm run script.py --verbose
  echo 'print(input())' | microvm run -i python3 -
  microvm run -it bash
  microvm run --timeout 30s -m 256m --env-file .env ./slow
  microvm run --pool py python3 -c 'print(1)'
  microvm run -p 8080:80 python3 -m http.server 80
  microvm run --image web                     the image's own entry point and arguments
  microvm run --image web --entrypoint sh -- -c 'ls /'
  microvm run --in ./data --out ./results sh -c 'wc /workspace/input/* > /workspace/output/counts'

Exit code: that of the command; 124 after a time-out; 128+n if signal n ended it; 125 for errors of microvm; 126 if the
command cannot be executed; 127 if it (or its user or working directory) does not exist. If the command exited with 0:
1 if --in or --out left files out (listed on standard error, `left_out` in JSON). A failure of --out is reported on
standard error and never replaces a command's exit code other than 0.")]
pub(crate) struct Run {
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    options: CommandOptions,
    /// Take the VM from this pool instead of creating one
    #[arg(long, value_name = "POOL")]
    pool: Option<Name>,
    /// Directory to copy to /workspace/input before the command
    #[arg(long = "in", value_name = "DIR")]
    in_directory: Option<PathBuf>,
    /// Directory to copy /workspace/output to after the command
    #[arg(long = "out", value_name = "DIR")]
    out_directory: Option<PathBuf>,
    /// Limit of bytes written to that directory; holes do not count [default: twice the disk of the VM]
    #[arg(long, value_name = "SIZE", requires = "out_directory")]
    max_bytes: Option<ByteSize>,
    /// Forward a port of this host's loopback to a TCP port of the VM while the command runs
    #[arg(short = 'p', long = "publish", value_name = "[HOST:]GUEST")]
    ports: Vec<PortPair>,
    /// Keep the VM after the command, and print its name on standard error
    #[arg(long)]
    keep: bool,
    /// Delete the VM after the command; this is the default
    #[arg(long = "rm", conflicts_with = "keep")]
    _remove: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Program to run instead of the image's entry point, without the image's default arguments; empty: no entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Arguments of the image's entry point, or program and arguments where it has none [default: the image's own]
    #[arg(trailing_var_arg = true, required_unless_present_any = ["image", "template", "pool", "entrypoint"], value_name = "COMMAND")]
    command: Vec<String>,
}

/// The output of `--output json`.
#[derive(Serialize)]
struct Report {
    vm: Vm,
    exit_code: u8,
    exit: ExitStatus,
    /// True if the command ended by itself with exit code 0.
    success: bool,
    /// Time from its start to its end.
    duration_seconds: Seconds,
    #[serde(flatten)]
    outputs: Outputs,
    /// `/workspace/output/results.json`, if the command wrote one.
    results: Option<serde_json::Value>,
    /// Files that `--in` and `--out` did not copy.
    left_out: LeftOut,
    /// Reason for which `--out` failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_problem: Option<String>,
}

/// Outcome of copying the command's output directory.
#[derive(Default)]
struct Copied {
    results: Option<serde_json::Value>,
    moved: Moved,
    failure: Option<CliError>,
}

/// The VM of a creation; tells what a failed one may have left.
fn made(creation: Creation) -> Result<Vm, CliError> {
    let (error, left) = match creation {
        Creation::Made(vm) => return Ok(*vm),
        Creation::Failed { error, leftovers } => (error.into(), leftovers),
        Creation::Ended { signal, leftovers } => (CliError::Interrupted(signal), leftovers),
    };
    leftovers::tell(left);
    Err(error)
}

impl Run {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let request = self.options.request(Vec::new(), false)?;
        let mut interrupts = Interrupts::new()?;
        // Nothing is made for a command that would be refused, or where it can be seen that there is nothing to run.
        interrupts.unless(self.options.admit(&context.client)).await?;
        if let (true, Some(image)) = (self.command.is_empty(), self.machine.image()) {
            let image = interrupts.unless(async { Ok(context.client.image(image).await?) }).await?;
            self.words(&image)?;
        }
        // Before the VM is made: a port that is taken costs none.
        let forwarding = Forwarding::listen(&self.ports).await?;
        let mut create = self.machine.request(std::collections::BTreeMap::new());
        create.pool = self.pool.clone();
        if create.name.is_none() {
            create.name = Some(sandbox::random_name("run")?);
        }
        if !self.keep {
            // If this program is killed, the server deletes the VM.
            create.limits = sandbox::temporary();
        }
        let claim = Claim::new()?;
        let creation = claim.create(&context.client, create, &mut interrupts);
        let created = made(progress::while_waiting(CREATING, self.quiet, creation).await)?;
        let (id, name) = (created.id.clone(), created.name.clone());
        let vm = VmRef::from(id.clone());
        if !context.output.is_json() && !self.quiet {
            forwarding.lines(name.as_str()).iter().for_each(|line| say(line));
        }
        // A failure of port forwarding is reported and does not end the command.
        let serving = async {
            let Err(error) = forwarding.serve(&context.client, &vm).await;
            say(&error.detail());
            std::future::pending::<Infallible>().await
        };
        let ran = Cell::new(false);
        let outcome = tokio::select! {
            outcome = self.in_vm(context, created, request, &mut interrupts, &ran) => outcome,
            never = serving => match never {},
        };
        // What a command has done is kept, also if its results could not be copied or it was interrupted.
        if self.keep && ran.get() {
            if !context.output.is_json() {
                say(&format!("the VM is kept: {name}"));
            }
        } else {
            leftovers::delete(&context.client, &id).await;
        }
        outcome
    }

    async fn in_vm(
        &self,
        context: &Context,
        created: Vm,
        mut request: ExecRequest,
        interrupts: &mut Interrupts,
        ran: &Cell<bool>,
    ) -> Result<u8, CliError> {
        let client = &context.client;
        let vm = VmRef::from(created.id.clone());
        // By digest: the name may lead to another image by now.
        let image = interrupts.unless(async { Ok(client.image(&created.image_digest).await?) }).await?;
        request.command = self.words(&image)?;
        let sent = interrupts.unless(self.prepare(context, &vm)).await?;
        let start = async {
            match client.exec(&vm, &request).await.map_err(CliError::not_started) {
                Err(CliError::Coded(problem, NO_PROGRAM)) => Err(self.perhaps_meant(client, problem).await),
                started => started,
            }
        };
        let session = interrupts.unless(start).await?;
        let begun = Instant::now();
        ran.set(true);
        let wiring = Wiring {
            stdin: self.options.interactive,
            terminal: self.options.tty,
            collect: context.output.is_json(),
            // The VM goes with the command: nothing could be attached to again.
            detach_keys: None,
        };
        let (status, collected) = session::stream(client, &vm, session, wiring, interrupts).await?;
        let took = begun.elapsed();
        let mut gathered = self.gather(client, &created, interrupts).await;
        let failure = gathered.failure.take();
        gathered.moved.left_out.merge(sent.left_out);
        if context.output.is_json() {
            context.output.json(&Report {
                vm: created,
                exit_code: status.shell_code(),
                exit: status,
                success: status.whole_code() == 0,
                duration_seconds: took.into(),
                outputs: session::outputs(collected, "without `--output json` all is printed"),
                results: gathered.results,
                left_out: gathered.moved.left_out.clone(),
                output_problem: failure.as_ref().map(CliError::detail),
            })?;
        }
        if status.timed_out {
            say("the command was killed because its time was up");
        }
        let incomplete = left_out::tell(&gathered.moved);
        match (status.shell_code(), failure) {
            (0, None) => Ok(incomplete),
            (0, Some(failure)) => Err(failure),
            (code, failure) => {
                if let Some(failure) = failure {
                    say(&format!("the output was not copied: {}", failure.detail()));
                }
                Ok(code)
            }
        }
    }

    /// Of a word that is no program in the guest but an image here, or the name of a script, another thing was meant.
    async fn perhaps_meant(&self, client: &Client, problem: Box<Problem>) -> CliError {
        if let Some(word) = self.command.first()
            && client.image(word).await.is_ok()
        {
            let detail = format!(
                "`{word}` is no program in this VM, but an image has that name: `microvm run --image {word}` runs a VM of it"
            );
            return CliError::Coded(
                Box::new(Problem::new(problem.kind, "command_is_image", detail)),
                NO_PROGRAM,
            );
        }
        if let Some(word) = self.command.first().filter(|word| Script::is_meant(word)) {
            let detail = format!("there is no file `{word}` here, and no program of that name in the VM");
            return CliError::Coded(
                Box::new(Problem::new(problem.kind, "script_not_found", detail)),
                NO_PROGRAM,
            );
        }
        CliError::Coded(problem, NO_PROGRAM)
    }

    /// The file of this host that the first word names, if it is a script.
    fn script(&self) -> Option<Script> {
        if self.entrypoint.is_some() {
            return None;
        }
        Script::of(self.command.first()?)
    }

    /// Program and arguments to run in a VM of this image.
    fn words(&self, image: &Image) -> Result<Vec<String>, CliError> {
        if let Some(script) = self.script() {
            return Ok(script.words(&self.command[1..]));
        }
        let words = sandbox::entry_point(&image.config, self.entrypoint.as_deref(), &self.command);
        if words.is_empty() {
            let name = image.names.first().unwrap_or(&image.digest);
            let detail = format!("the image {name} does not say what to run: give a command");
            return Err(CliError::invalid("no_command", detail));
        }
        Ok(words)
    }

    async fn prepare(&self, context: &Context, vm: &VmRef) -> Result<Moved, CliError> {
        // The user that the command runs as can write to these directories.
        let workspace = Workspace { owner: self.options.owner() };
        if let Some(script) = self.script() {
            script.send(&context.client, vm, &workspace.owner).await?;
        }
        if self.in_directory.is_none() && self.out_directory.is_none() {
            return Ok(Moved::default());
        }
        Ok(workspace.prepare(&context.client, vm, self.in_directory.as_deref()).await?)
    }

    /// Takes the output out of the VM. The command has ended by now: whatever fails here stands beside its exit code.
    async fn gather(&self, client: &Client, vm: &Vm, interrupts: &mut Interrupts) -> Copied {
        let Some(output) = &self.out_directory else { return Copied::default() };
        let gathering = async { Ok(Workspace::gather(client, vm, output, self.max_bytes).await) };
        match interrupts.unless(gathering).await {
            Ok(Gathered { results, moved, failure }) => {
                Copied { results, moved, failure: failure.map(CliError::from) }
            }
            Err(failure) => Copied { failure: Some(failure), ..Copied::default() },
        }
    }
}
