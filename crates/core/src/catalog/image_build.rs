//! Building images, with commands run in a VM of what is there so far.

use std::fmt::Write as _;

use futures::StreamExt;
use microvm_ports::content;
use microvm_ports::guest::{GuestPath, ProcessEvent};
use microvm_ports::storage::{ImageConfig, ImageInfo, ImageSource, RecipeFile, StorageError};
use microvm_ports::{Guest, Progress, PulledArchive};
use microvm_types::exec::ExecRequest;
use microvm_types::files::WriteOptions;
use microvm_types::template::Overrides;
use microvm_types::vm::{Limits, NewVm};
use microvm_types::{OperationName, VmId};

use super::Catalog;
use crate::creation::CreateRequest;
use crate::error::ServiceError;
use crate::vm::guard;
use crate::vm::shared::Shared;
use crate::vms::Vms;

/// What an image is built on.
#[derive(Debug, Clone)]
pub enum ImageBase {
    /// An image of the store, by name or digest.
    Image(String),
    /// Something from outside the store.
    Source(ImageSource),
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct ImageRecipe {
    /// Name it gets.
    pub name: String,
    /// What it is built on.
    pub base: ImageBase,
    /// Files put in on top, before the commands run.
    pub files: Vec<RecipeFile>,
    /// Commands run in a VM, in order, each by `sh -c`. The first that fails ends the build.
    pub commands: Vec<String>,
    /// How programs run in it; merged over the base's.
    pub config: ImageConfig,
}

/// Bytes of a failed command's output shown with the error.
const OUTPUT_TAIL: usize = 2_000;
/// A build VM that nobody uses for so long is given up, in seconds; the safety net of a build that was cut off.
const IDLE_SECONDS: u64 = 600;
impl Catalog {
    /// Builds an image. If it fails, or the future is dropped, the name keeps pointing to what it did.
    ///
    /// # Errors
    /// Storage errors; [`ServiceError::BuildCommand`] with the end of what the command printed.
    pub async fn build_image(
        &self,
        recipe: &ImageRecipe,
        progress: Progress,
    ) -> Result<ImageInfo, ServiceError> {
        self.context.authorise(OperationName::IMAGE_ADD)?;
        let images = &self.context.shared.ports.images;
        if let ImageBase::Source(source) = &recipe.base
            && recipe.commands.is_empty()
        {
            let added = images.add_image(&recipe.name, source, &recipe.files, &recipe.config, progress).await;
            return Ok(added?);
        }
        // A source from outside becomes an image under a name nobody uses, removed at the end.
        let (base, temporary) = match &recipe.base {
            ImageBase::Image(reference) => (images.image(reference).await?.info, None),
            ImageBase::Source(source) => {
                let name = format!("build-{}", self.context.shared.ports.new_vm_id());
                let info =
                    images.add_image(&name, source, &recipe.files, &recipe.config, progress.clone()).await?;
                (info, Some(name))
            }
        };
        let built = self.build_in_vm(recipe, &base, temporary.is_none(), &progress).await;
        if let Some(name) = temporary {
            // The same files may be an image that others were made of; then it loses the name of this build only.
            let removed = if self.is_needed(&base.digest) {
                images.remove_image_name(&name).await
            } else {
                images.remove_image(&name, &[]).await
            };
            if let Err(error) = removed {
                tracing::warn!(image = name, %error, "the base of a build could not be removed");
            }
        }
        built
    }

    async fn build_in_vm(
        &self,
        recipe: &ImageRecipe,
        base: &ImageInfo,
        put_files: bool,
        progress: &Progress,
    ) -> Result<ImageInfo, ServiceError> {
        progress.step("starting a VM for the commands");
        let limits = &self.context.shared.settings.limits;
        let request = CreateRequest {
            overrides: Overrides {
                image: Some(base.digest.clone()),
                vcpus: Some(limits.max_vcpus.min(2)),
                memory_mib: Some(limits.max_memory_mib.min(1_024)),
                ..Overrides::default()
            },
            vm: NewVm {
                limits: Limits { idle_seconds: Some(IDLE_SECONDS), ephemeral: true, ..Limits::default() },
                ..NewVm::default()
            },
            start: true,
            ..CreateRequest::default()
        };
        let vm = Vms::new(&self.context).create_as_asked(request).await?.record.id;
        // Removed also when the build is dropped in the middle (then by its actor, in the background).
        let vm = guard::guard(&self.context.shared, vm);
        let outcome = self.run_recipe(recipe, base, put_files, progress, &vm.id).await;
        guard::remove(vm, "VM of an image build").await;
        outcome
    }

    async fn run_recipe(
        &self,
        recipe: &ImageRecipe,
        base: &ImageInfo,
        put_files: bool,
        progress: &Progress,
        vm: &VmId,
    ) -> Result<ImageInfo, ServiceError> {
        let shared: &Shared = &self.context.shared;
        let guest = shared.registry.by_id(vm)?.guest(shared).await?;
        if put_files {
            for file in &recipe.files {
                put_file(&*guest, file).await?;
            }
        }
        for (index, command) in recipe.commands.iter().enumerate() {
            run_command(&*guest, command, index, recipe.commands.len(), progress).await?;
        }
        progress.step("reading the result");
        let config = base.config.clone().with(&recipe.config);
        let tree = guest.pull_root(b"/").await?;
        let description = format!("built on {} with {} commands", short(&base.digest), recipe.commands.len());
        let PulledArchive { data, left_out } = tree;
        let images = &self.context.shared.ports.images;
        let image =
            images.add_image_from_stream(&recipe.name, &description, &config, data, progress.clone()).await?;
        if let Ok(left_out) = left_out.await {
            for entry in &left_out.entries {
                progress.step(format!("left out {}: {}", entry.path, entry.reason));
            }
            if left_out.count > left_out.entries.len() as u64 {
                progress.step(format!("{} entries were left out", left_out.count));
            }
        }
        Ok(image)
    }
}

fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

async fn put_file(guest: &dyn Guest, file: &RecipeFile) -> Result<(), ServiceError> {
    let wrong =
        |detail: String| StorageError::BadInput { what: format!("the recipe's file {}", file.path), detail };
    let mode = match &file.mode {
        Some(text) => Some(
            u32::from_str_radix(text, 8).map_err(|_| wrong(format!("`{text}` is not a mode in octal")))?,
        ),
        None => None,
    };
    let Some(content) = file.content.clone() else {
        return Err(wrong("on an image of the store only files with `content` can be put".to_owned()).into());
    };
    let path: &GuestPath = file.path.as_bytes();
    let data = futures::stream::once(async move { Ok(content.into()) });
    let options = WriteOptions { mode, create_parents: true, ..WriteOptions::default() };
    guest.write_file(path, &options, content::of_bytes(Box::pin(data))).await?;
    Ok(())
}

async fn run_command(
    guest: &dyn Guest,
    command: &str,
    index: usize,
    count: usize,
    progress: &Progress,
) -> Result<(), ServiceError> {
    let step = format!("command {} of {count}: {}", index + 1, first_line(command));
    progress.step(step.clone());
    let request = ExecRequest {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()],
        ..ExecRequest::default()
    };
    let mut process = guest.exec(&request).await?;
    let mut output = Vec::new();
    let mut total = 0;
    while let Some(event) = process.events.next().await {
        match event {
            ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) => {
                total += bytes.len() as u64;
                progress.advance(step.clone(), total, None);
                output.extend_from_slice(&bytes);
                if output.len() > 2 * OUTPUT_TAIL {
                    output.drain(..output.len() - OUTPUT_TAIL);
                }
            }
            ProcessEvent::Exited(status) if status.shell_code() == 0 => return Ok(()),
            ProcessEvent::Exited(status) => {
                let tail = output.split_off(output.len().saturating_sub(OUTPUT_TAIL));
                return Err(ServiceError::BuildCommand {
                    command: first_line(command),
                    code: status.shell_code(),
                    output: printable(&tail),
                });
            }
            ProcessEvent::Lost(error) => return Err(error.into()),
            ProcessEvent::UpToDate => {}
        }
    }
    Err(ServiceError::BuildCommand {
        command: first_line(command),
        code: 255,
        output: "it vanished".to_owned(),
    })
}

fn first_line(command: &str) -> String {
    let line = command.lines().next().unwrap_or_default();
    let mut text: String = line.chars().take(60).collect();
    if text.len() < command.len() {
        text.push('…');
    }
    text
}

fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for character in String::from_utf8_lossy(bytes).chars() {
        if character == '\n' || character == '\t' || !character.is_control() {
            let _ = text.write_char(character);
        }
    }
    text
}
