//! Building images, with commands run in a VM of what is there so far.

use std::fmt::Write as _;

use futures::StreamExt;
use microvm_ports::guest::ProcessEvent;
use microvm_ports::storage::{Additions, ImageConfig, ImageInfo, ImageSource, StorageError};
use microvm_ports::{Guest, Progress, PulledArchive};
use microvm_types::exec::ExecRequest;
use microvm_types::template::Overrides;
use microvm_types::vm::{Limits, NewVm};
use microvm_types::{OperationName, VmId, VmRef};

use super::Catalog;
use super::between::{Between, is_reserved};
use crate::creation::CreateRequest;
use crate::error::ServiceError;
use crate::vm::guard;
use crate::vm::shared::Shared;
use crate::vms::create_as_asked;

/// Base of an image.
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
    /// Its base.
    pub base: ImageBase,
    /// Everything put in on top, before the commands run.
    pub additions: Additions,
    /// Commands run in a VM, in order, each by `sh -c`. The first that fails ends the build.
    pub commands: Vec<String>,
    /// Configuration of programs in it; merged over the base's.
    pub config: ImageConfig,
    /// True if the result of an equal build is taken instead of building.
    pub cache: bool,
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
        let _making = self.context.shared.making.read().await;
        let images = &self.context.shared.ports.images;
        let ImageRecipe { name, base, additions, commands, config, cache } = recipe;
        // First of all: a reserved name would be removed by the next garbage collection.
        check_free(name)?;
        images.check_additions(additions).await?;
        let Additions { packages, pip, npm, files } = additions;
        // Everything else can be written by the store in one pass, without an image in between.
        let simple = commands.is_empty() && packages.is_empty() && pip.is_empty() && npm.is_empty();
        let mut temporary = Between::new(self);
        let built = match base {
            ImageBase::Source(source) if simple => {
                Ok(images.add_image(name, source, files, config, progress).await?)
            }
            ImageBase::Source(source) => {
                // It becomes an image under a name that nobody uses, which goes with this build.
                let below = temporary.name();
                let added =
                    images.add_image(&below, source, &[], &ImageConfig::default(), progress.clone()).await;
                match added {
                    Ok(info) => self.build_on(recipe, &info, *cache, &mut temporary, &progress).await,
                    Err(error) => Err(error.into()),
                }
            }
            ImageBase::Image(reference) => {
                let info = images.image(reference).await?.info;
                self.build_on(recipe, &info, *cache, &mut temporary, &progress).await
            }
        };
        // Also after a failure: images between the steps are of no use to anybody.
        let gone = temporary.remove().await;
        built.map(|mut info| {
            info.names.retain(|name| !gone.contains(name));
            info
        })
    }

    /// Makes an image of the changes of a running VM's root disk over its image. The VM runs on; what writes to its disk waits until
    /// the changes are read.
    ///
    /// # Errors
    /// [`ServiceError::NotRunning`]; storage errors.
    pub async fn commit(
        &self,
        vm: &VmRef,
        name: &str,
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, ServiceError> {
        self.context.authorise(OperationName::IMAGE_COMMIT)?;
        check_free(name)?;
        let _making = self.context.shared.making.read().await;
        let handle = self.context.owned(vm)?;
        let record = handle.record();
        // The lease keeps idle care away while the changes are read, which may take minutes.
        let guest = handle.guest(&self.context.shared).await?;
        let description = format!("{} with the changes of VM {}", record.template.image, record.name);
        let layer = Layer { name, base: &record.image_digest, description: &description, config };
        self.add_changes(&*guest, &layer, &progress).await
    }

    /// Gives an image a further name, which another image may lose by that.
    ///
    /// # Errors
    /// Storage errors.
    pub async fn tag_image(&self, reference: &str, name: &str) -> Result<ImageInfo, ServiceError> {
        self.context.authorise(OperationName::IMAGE_TAG)?;
        check_free(name)?;
        Ok(self.context.shared.ports.images.name_image(reference, name).await?)
    }

    /// Takes the result of an equal build, or builds and remembers.
    async fn build_on(
        &self,
        recipe: &ImageRecipe,
        base: &ImageInfo,
        cache: bool,
        temporary: &mut Between,
        progress: &Progress,
    ) -> Result<ImageInfo, ServiceError> {
        let images = &self.context.shared.ports.images;
        let ImageRecipe { name, base: _, additions, commands, config, cache: _ } = recipe;
        let Additions { packages, pip, npm, files } = additions;
        let inputs = (&base.digest, packages, pip, npm, commands, config);
        let text = serde_json::to_string(&inputs).map_err(|error| StorageError::BadInput {
            what: "the recipe".to_owned(),
            detail: error.to_string(),
        })?;
        // Over the content of the files, so that a change of one is another build.
        let key = images.build_key(&text, files).await?;
        if cache && let Some(digest) = images.cached_build(&key).await? {
            progress.step("the image of an equal build is taken from the cache");
            return Ok(images.name_image(&digest, name).await?);
        }
        let built = self.build_steps(recipe, base, temporary, progress).await?;
        // Files that were changed meanwhile went in as they were then or as they are now. And the image is built, whatever
        // becomes of the cache.
        let remembered = async {
            if images.build_key(&text, files).await? == key {
                images.remember_build(&key, &built.digest).await?;
            }
            Ok::<_, StorageError>(())
        };
        if let Err(error) = remembered.await {
            tracing::warn!(image = name, %error, "a build could not be put into the cache");
        }
        Ok(built)
    }

    async fn build_steps(
        &self,
        recipe: &ImageRecipe,
        base: &ImageInfo,
        temporary: &mut Between,
        progress: &Progress,
    ) -> Result<ImageInfo, ServiceError> {
        let images = &self.context.shared.ports.images;
        let ImageRecipe { name, base: _, additions, commands, config, cache: _ } = recipe;
        // The name is moved by the last step alone: a build that fails leaves it as it is.
        let mut place = |last: bool| if last { name.clone() } else { temporary.name() };
        let (mut below, last, nothing) = (base.clone(), commands.is_empty(), ImageConfig::default());
        let over = if last { config } else { &nothing };
        if last || !additions.is_empty() {
            // Only the store knows which packages have scripts.
            let whole = additions.packages.is_empty();
            let first = place(last && whole);
            let added = images.extend_image(&first, &below.digest, additions, over, progress.clone()).await?;
            below = added.info;
            // Scripts of packages run in a VM: they are programs of strangers, and expect a running system.
            if !added.unfinished.is_empty() {
                let step = Step { name: &place(false), commands: &added.unfinished, config: &nothing };
                below = self.build_in_vm(&step, &below, progress).await?;
                let rest = Additions { packages: Vec::new(), ..additions.clone() };
                let finished = place(last);
                let added =
                    images.extend_image(&finished, &below.digest, &rest, over, progress.clone()).await?;
                below = added.info;
            } else if last && !whole {
                below = images.name_image(&below.digest, name).await?;
            }
        }
        if !last {
            let step = Step { name, commands, config };
            below = self.build_in_vm(&step, &below, progress).await?;
        }
        Ok(below)
    }

    async fn build_in_vm(
        &self,
        step: &Step<'_>,
        base: &ImageInfo,
        progress: &Progress,
    ) -> Result<ImageInfo, ServiceError> {
        progress.step("starting a VM for the commands");
        let limits = &self.context.shared.settings.limits;
        let request = CreateRequest {
            overrides: Overrides {
                // By digest: the name may be moved by another build meanwhile.
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
        let vm = create_as_asked(&self.context, request).await?.record.id;
        // Removed also when the build is dropped in the middle (then by its actor, in the background).
        let vm = guard::guard(&self.context.shared, vm);
        // The VM is removed whatever the commands did; what counts of it is in the layer.
        let outcome = self.run_step(step, base, progress, &vm.id).await;
        guard::remove(vm, "VM of an image build").await;
        outcome
    }

    async fn run_step(
        &self,
        step: &Step<'_>,
        base: &ImageInfo,
        progress: &Progress,
        vm: &VmId,
    ) -> Result<ImageInfo, ServiceError> {
        let shared: &Shared = &self.context.shared;
        let guest = shared.registry.by_id(vm)?.guest(shared).await?;
        // One after the other in one VM: each sees what the ones before it have done.
        for (index, command) in step.commands.iter().enumerate() {
            run_command(&*guest, command, index, step.commands.len(), progress).await?;
        }
        let count = step.commands.len();
        let description =
            format!("{} with {count} command{}", base.called(), if count == 1 { "" } else { "s" });
        let layer =
            Layer { name: step.name, base: &base.digest, description: &description, config: step.config };
        self.add_changes(&*guest, &layer, progress).await
    }

    /// Makes an image of what a guest has changed.
    async fn add_changes(
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

/// Changes of a guest that become an image.
struct Layer<'a> {
    /// Name of the image.
    name: &'a str,
    /// Digest of the image of the guest.
    base: &'a str,
    description: &'a str,
    config: &'a ImageConfig,
}

/// Commands of a build that run in one VM.
struct Step<'a> {
    /// Name of the image that they make.
    name: &'a str,
    commands: &'a [String],
    config: &'a ImageConfig,
}

/// Refuses names that builds use between their steps: such an image would be removed.
fn check_free(name: &str) -> Result<(), StorageError> {
    if !is_reserved(name) {
        return Ok(());
    }
    Err(StorageError::BadInput {
        what: format!("the image name `{name}`"),
        detail: "names of this form are those of images between the steps of builds: choose another"
            .to_owned(),
    })
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
                // Only the end is shown; a command that prints gigabytes must not take the memory of the server.
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
