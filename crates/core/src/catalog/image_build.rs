//! Building images, with commands run in a VM of what is there so far.

use microvm_ports::Progress;
use microvm_ports::storage::{Additions, ImageConfig, ImageInfo, ImageSource, Placement, StorageError};
use microvm_types::image::BuildStep;
use microvm_types::{OperationName, VmRef};

use super::Catalog;
use super::between::{Between, is_reserved};
use super::build_vm::{Action, Layer, Session};
use super::disk;
use crate::error::ServiceError;

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
    /// Steps taken in order after all of these. The first that fails ends the build.
    pub steps: Vec<BuildStep>,
    /// Configuration of programs in it; merged over the base's.
    pub config: ImageConfig,
    /// True if the result of an equal build is taken instead of building.
    pub cache: bool,
}

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
        let ImageRecipe { name, base, additions, commands, steps, config, cache } = recipe;
        // First of all: a reserved name would be removed by the next garbage collection.
        check_free(name)?;
        check_commands(steps)?;
        let placements = placements(recipe);
        let all = Additions { placements: placements.clone(), ..additions.clone() };
        images.check_additions(&all).await?;
        let Additions { packages, pip, npm, files, placements: _ } = additions;
        // Everything else can be written by the store in one pass, without an image in between.
        let simple = commands.is_empty()
            && steps.is_empty()
            && placements.is_empty()
            && packages.is_empty()
            && pip.is_empty()
            && npm.is_empty();
        let mut temporary = Between::new(self);
        let disk = match base {
            ImageBase::Source(ImageSource::Path { path }) => {
                images.disk_at(path).await?.map(|format| (&**path, format))
            }
            ImageBase::Source(_) | ImageBase::Image(_) => None,
        };
        let built = match (base, disk) {
            (ImageBase::Source(_), Some(disk)) if simple && files.is_empty() => {
                disk::add(self, (name, config), disk, &progress).await
            }
            (ImageBase::Source(_), Some(disk)) => {
                let (below, nothing) = (temporary.name(), ImageConfig::default());
                match disk::add(self, (&below, &nothing), disk, &progress).await {
                    Ok(info) => self.build_on(recipe, &info, *cache, &mut temporary, &progress).await,
                    Err(error) => Err(error),
                }
            }
            (ImageBase::Source(source), None) if simple => {
                Ok(images.add_image(name, source, files, config, progress).await?)
            }
            (ImageBase::Source(source), None) => {
                // It becomes an image under a name that nobody uses, which goes with this build.
                let below = temporary.name();
                let added =
                    images.add_image(&below, source, &[], &ImageConfig::default(), progress.clone()).await;
                match added {
                    Ok(info) => self.build_on(recipe, &info, *cache, &mut temporary, &progress).await,
                    Err(error) => Err(error.into()),
                }
            }
            (ImageBase::Image(reference), _) => {
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
        let ImageRecipe { name, base: _, additions, commands, steps, config, cache: _ } = recipe;
        let Additions { packages, pip, npm, files, placements: first } = additions;
        let steps: Vec<BuildStep> = steps.iter().map(for_key).collect();
        let inputs = (&base.digest, packages, pip, npm, commands, first, steps, config);
        let text = serde_json::to_string(&inputs).map_err(|error| StorageError::BadInput {
            what: "the recipe".to_owned(),
            detail: error.to_string(),
        })?;
        // Over the content of the files, so that a change of one is another build.
        let placements = placements(recipe);
        let key = images.build_key(&text, files, &placements).await?;
        if cache && let Some(digest) = images.cached_build(&key).await? {
            progress.step("the image of an equal build is taken from the cache");
            return Ok(images.name_image(&digest, name).await?);
        }
        let built = self.build_steps(recipe, base, temporary, progress).await?;
        // Files that were changed meanwhile went in as they were then or as they are now. And the image is built, whatever
        // becomes of the cache.
        let remembered = async {
            if images.build_key(&text, files, &placements).await? == key {
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
        let parts = parts(recipe);
        let (mut below, nothing) = (base.clone(), ImageConfig::default());
        for (index, part) in parts.iter().enumerate() {
            // The name is moved by the last part alone: a build that fails leaves it as it is.
            let last = index + 1 == parts.len();
            let name = if last { recipe.name.clone() } else { temporary.name() };
            let config = if last { &recipe.config } else { &nothing };
            below = match part {
                Part::Additions(additions) => {
                    put_in(self, additions, &below, (&name, config), temporary, progress).await?
                }
                Part::InVm(actions) => {
                    let session = Session { name: &name, actions, config };
                    self.build_in_vm(&session, &below, progress).await?
                }
            };
            temporary.keep_only(&[&name]).await;
        }
        Ok(below)
    }
}

/// Makes an image of `base` with additions. Only the store knows which packages have scripts; these run in a VM, as they are
/// programs of strangers and expect a running system.
async fn put_in(
    catalog: &Catalog,
    additions: &Additions,
    base: &ImageInfo,
    (name, config): (&str, &ImageConfig),
    temporary: &mut Between,
    progress: &Progress,
) -> Result<ImageInfo, ServiceError> {
    let images = &catalog.context.shared.ports.images;
    let whole = additions.packages.is_empty();
    let first = if whole { name.to_owned() } else { temporary.name() };
    let added = images.extend_image(&first, &base.digest, additions, config, progress.clone()).await?;
    if added.unfinished.is_empty() {
        return Ok(if whole { added.info } else { images.name_image(&added.info.digest, name).await? });
    }
    // Each of the following needs the image before it, and no other.
    temporary.keep_only(&[&first, name]).await;
    let actions: Vec<Action> = added.unfinished.iter().map(|command| Action::of_command(command)).collect();
    let (finished, nothing) = (temporary.name(), ImageConfig::default());
    let session = Session { name: &finished, actions: &actions, config: &nothing };
    let below = catalog.build_in_vm(&session, &added.info, progress).await?;
    temporary.keep_only(&[&finished, name]).await;
    let rest = Additions { packages: Vec::new(), ..additions.clone() };
    Ok(images.extend_image(name, &below.digest, &rest, config, progress.clone()).await?.info)
}

/// A part of a build that makes one image of the one below.
enum Part {
    /// What the store puts in by itself.
    Additions(Additions),
    /// What happens in one VM.
    InVm(Vec<Action>),
}

/// The parts of a build in their order, at least one: neighbours that need a VM share one.
fn parts(recipe: &ImageRecipe) -> Vec<Part> {
    let mut parts = Vec::new();
    if !recipe.additions.is_empty() || (recipe.commands.is_empty() && recipe.steps.is_empty()) {
        parts.push(Part::Additions(recipe.additions.clone()));
    }
    if !recipe.commands.is_empty() {
        parts.push(Part::InVm(recipe.commands.iter().map(|command| Action::of_command(command)).collect()));
    }
    for step in &recipe.steps {
        match (step, parts.last_mut()) {
            (BuildStep::Run(run), Some(Part::InVm(actions))) => actions.push(Action::of_step(run)),
            (BuildStep::Run(run), _) => parts.push(Part::InVm(vec![Action::of_step(run)])),
            (BuildStep::Directory(step), Some(Part::InVm(actions))) => {
                actions.push(Action::Directory(step.clone()));
            }
            (BuildStep::Directory(step), last) => {
                place(last, Placement::Directory(step.clone())).into_iter().for_each(|part| parts.push(part))
            }
            (BuildStep::Copy(step), last) => {
                place(last, Placement::Copy(step.clone())).into_iter().for_each(|part| parts.push(part));
            }
        }
    }
    parts
}

/// Puts a placement at the end of the last part, or returns a new one.
fn place(last: Option<&mut Part>, placement: Placement) -> Option<Part> {
    if let Some(Part::Additions(additions)) = last {
        additions.placements.push(placement);
        return None;
    }
    Some(Part::Additions(Additions { placements: vec![placement], ..Additions::default() }))
}

/// Everything of the host that a recipe's additions and steps put in.
fn placements(recipe: &ImageRecipe) -> Vec<Placement> {
    let of_steps = recipe.steps.iter().filter_map(|step| match step {
        BuildStep::Run(_) => None,
        BuildStep::Copy(step) => Some(Placement::Copy(step.clone())),
        BuildStep::Directory(step) => Some(Placement::Directory(step.clone())),
    });
    recipe.additions.placements.iter().cloned().chain(of_steps).collect()
}

/// A step as it counts for the cache: without its title, and without the place of its files, whose content counts.
fn for_key(step: &BuildStep) -> BuildStep {
    let mut step = step.clone();
    match &mut step {
        BuildStep::Run(run) => run.title.clear(),
        BuildStep::Copy(copy) => {
            copy.title.clear();
            copy.context.clear();
        }
        BuildStep::Directory(directory) => directory.title.clear(),
    }
    step
}

/// Refuses commands without a word before a VM is started for them.
fn check_commands(steps: &[BuildStep]) -> Result<(), StorageError> {
    let empty = |step: &&BuildStep| matches!(step, BuildStep::Run(run) if run.command.is_empty());
    let Some(BuildStep::Run(run)) = steps.iter().find(empty) else { return Ok(()) };
    Err(StorageError::BadInput { what: run.title.clone(), detail: "it has no command".to_owned() })
}

/// Refuses names that no image can have, before the work, and those that builds use between their steps: such an image would be
/// removed.
fn check_free(name: &str) -> Result<(), StorageError> {
    ImageInfo::check_name(name)?;
    if !is_reserved(name) {
        return Ok(());
    }
    Err(StorageError::BadInput {
        what: format!("the image name `{name}`"),
        detail: "names of this form are those of images between the steps of builds: choose another"
            .to_owned(),
    })
}
