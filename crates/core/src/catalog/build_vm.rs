//! Steps of a build that run in a VM of the image so far, whose changes become the next image.

use std::fmt::Write as _;

use futures::StreamExt;
use microvm_ports::guest::ProcessEvent;
use microvm_ports::storage::{DirectoryStep, ImageConfig, ImageInfo};
use microvm_ports::{Guest, GuestError, Progress, PulledArchive};
use microvm_types::exec::ExecRequest;
use microvm_types::files::{FileOwner, LeftOut};
use microvm_types::image::RunStep;
use microvm_types::template::Overrides;
use microvm_types::vm::{Limits, NewVm};
use microvm_types::{ErrorKind, VmId};
use tokio::sync::oneshot;

use super::Catalog;
use crate::creation::CreateRequest;
use crate::error::ServiceError;
use crate::vm::guard;
use crate::vm::shared::Shared;
use crate::vms::create_as_asked;

/// Bytes of a failed command's output shown with the error.
const OUTPUT_TAIL: usize = 2_000;
/// A build VM that nobody uses for so long is given up, in seconds; the safety net of a build that was cut off.
const IDLE_SECONDS: u64 = 600;
/// Mode of directories that a build makes.
const DIRECTORY: u32 = 0o755;

/// What a build does in a VM.
#[derive(Debug)]
pub(super) enum Action {
    /// Runs a command.
    Run {
        /// The command in messages.
        title: String,
        /// The command.
        request: ExecRequest,
    },
    /// Makes a directory where there is none.
    Directory(DirectoryStep),
}

impl Action {
    /// A command of a recipe, which `sh -c` gets.
    pub(super) fn of_command(command: &str) -> Self {
        let request = ExecRequest {
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()],
            ..ExecRequest::default()
        };
        Self::Run { title: first_line(command), request }
    }

    /// A command of an ordered build.
    pub(super) fn of_step(step: &RunStep) -> Self {
        let RunStep { title, command, environment, user, working_directory } = step;
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        let request = ExecRequest {
            command: command.clone(),
            environment: environment.clone(),
            user: said(user),
            working_directory: said(working_directory),
            ..ExecRequest::default()
        };
        Self::Run { title: title.clone(), request }
    }
}

/// Actions of a build that take place in one VM.
pub(super) struct Session<'a> {
    /// Name of the image that they make.
    pub(super) name: &'a str,
    pub(super) actions: &'a [Action],
    pub(super) config: &'a ImageConfig,
}

/// Changes of a guest that become an image.
pub(super) struct Layer<'a> {
    /// Name of the image.
    pub(super) name: &'a str,
    /// Digest of the image of the guest.
    pub(super) base: &'a str,
    pub(super) description: &'a str,
    pub(super) config: &'a ImageConfig,
}

impl Catalog {
    /// Makes an image of `base` with what the actions leave.
    pub(super) async fn build_in_vm(
        &self,
        session: &Session<'_>,
        base: &ImageInfo,
        progress: &Progress,
    ) -> Result<ImageInfo, ServiceError> {
        progress.step("starting a VM for the commands");
        // By digest: the name may be moved by another build meanwhile.
        let overrides = Overrides { image: Some(base.digest.clone()), ..Overrides::default() };
        let request = of_build(&self.context.shared, overrides);
        let vm = create_as_asked(&self.context, request).await?.record.id;
        // Removed also when the build is dropped in the middle (then by its actor, in the background).
        let vm = guard::guard(&self.context.shared, vm);
        // The VM is removed whatever the commands did; what counts of it is in the layer.
        let outcome = self.act(session, base, progress, &vm.id).await;
        guard::remove(vm, "VM of an image build").await;
        outcome
    }

    async fn act(
        &self,
        session: &Session<'_>,
        base: &ImageInfo,
        progress: &Progress,
        vm: &VmId,
    ) -> Result<ImageInfo, ServiceError> {
        let shared: &Shared = &self.context.shared;
        let guest = shared.registry.by_id(vm)?.guest(shared).await?;
        let count = session.actions.len();
        // One after the other in one VM: each sees what the ones before it have done.
        for (index, action) in session.actions.iter().enumerate() {
            match action {
                Action::Run { title, request } => {
                    let step = format!("command {} of {count}: {title}", index + 1);
                    run_command(&*guest, title, request, step, progress).await?;
                }
                Action::Directory(DirectoryStep { title, path, owner }) => {
                    progress.step(title.clone());
                    let owner = (!owner.is_empty()).then(|| FileOwner::from_text(owner));
                    let made = guest.make_directory(path.as_bytes(), DIRECTORY, true, owner.as_ref()).await;
                    made.map_err(|error| not_started(title, error))?;
                }
            }
        }
        let description =
            format!("{} with {count} command{}", base.called(), if count == 1 { "" } else { "s" });
        let Session { name, config, .. } = session;
        let layer = Layer { name, base: &base.digest, description: &description, config };
        self.add_changes(&*guest, &layer, progress).await
    }

    /// Makes an image of what a guest has changed.
    pub(super) async fn add_changes(
        &self,
        guest: &dyn Guest,
        layer: &Layer<'_>,
        progress: &Progress,
    ) -> Result<ImageInfo, ServiceError> {
        progress.step("reading the changes");
        let PulledArchive { data, left_out } = guest.pull_layer().await?;
        let images = &self.context.shared.ports.images;
        let Layer { name, base, description, config } = layer;
        // The report of the guest comes after its last byte: it can be read only when all are taken.
        let image = images.add_layer(name, base, description, config, data, progress.clone()).await?;
        tell_left_out(left_out, progress).await;
        Ok(image)
    }
}

/// The VM of a build, with its sizes.
pub(super) fn of_build(shared: &Shared, overrides: Overrides) -> CreateRequest {
    let limits = &shared.settings.limits;
    CreateRequest {
        overrides: Overrides {
            vcpus: Some(limits.max_vcpus.min(2)),
            memory_mib: Some(limits.max_memory_mib.min(1_024)),
            ..overrides
        },
        vm: NewVm {
            limits: Limits { idle_seconds: Some(IDLE_SECONDS), ephemeral: true, ..Limits::default() },
            ..NewVm::default()
        },
        start: true,
        ..CreateRequest::default()
    }
}

/// Tells what a guest left out of its archive, all of which was taken.
pub(super) async fn tell_left_out(left_out: oneshot::Receiver<LeftOut>, progress: &Progress) {
    let Ok(left_out) = left_out.await else { return };
    for entry in &left_out.entries {
        progress.step(format!("left out {}: {}", entry.path, entry.reason));
    }
    if left_out.count > left_out.entries.len() as u64 {
        progress.step(format!("{} entries were left out", left_out.count));
    }
}

async fn run_command(
    guest: &dyn Guest,
    title: &str,
    request: &ExecRequest,
    step: String,
    progress: &Progress,
) -> Result<(), ServiceError> {
    progress.step(step.clone());
    let mut process = guest.exec(request).await.map_err(|error| not_started(title, error))?;
    let mut output = Vec::new();
    let mut total = 0;
    while let Some(event) = process.events.next().await {
        match event {
            ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) => {
                total += bytes.len() as u64;
                progress.advance(step.clone(), total, None);
                output.extend_from_slice(&bytes);
                // Only the end is shown; a command that prints gigabytes must not take the memory of the server.
                if output.len() > 2 * OUTPUT_TAIL {
                    output.drain(..output.len() - OUTPUT_TAIL);
                }
            }
            ProcessEvent::Exited(status) if status.shell_code() == 0 => return Ok(()),
            ProcessEvent::Exited(status) => {
                let tail = output.split_off(output.len().saturating_sub(OUTPUT_TAIL));
                return Err(ServiceError::BuildCommand {
                    command: title.to_owned(),
                    code: status.shell_code(),
                    output: printable(&tail),
                });
            }
            ProcessEvent::Lost(error) => return Err(error.into()),
            ProcessEvent::UpToDate => {}
        }
    }
    Err(ServiceError::BuildCommand { command: title.to_owned(), code: 255, output: "it vanished".to_owned() })
}

/// The error of a command that was not started: one that is the step's own fault names it.
fn not_started(title: &str, error: GuestError) -> ServiceError {
    // As a shell has them: not found, not executable.
    let code = match error.kind() {
        ErrorKind::NotFound => 127,
        ErrorKind::Invalid | ErrorKind::Forbidden => 126,
        _ => return error.into(),
    };
    ServiceError::BuildCommand { command: title.to_owned(), code, output: error.to_string() }
}

fn first_line(command: &str) -> String {
    let line = command.lines().next().unwrap_or_default();
    let mut text: String = line.chars().take(60).collect();
    if text.len() < command.len() {
        text.push('…');
    }
    text
}

/// The text of a guest without what a terminal would obey.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for character in String::from_utf8_lossy(bytes).chars() {
        if character == '\n' || character == '\t' || !character.is_control() {
            let _ = text.write_char(character);
        }
    }
    text
}
