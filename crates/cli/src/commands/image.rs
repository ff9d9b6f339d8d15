//! `microvm image`: the file systems VMs start from.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use microvm_api::image::{AddImage, Image as ImageBody, ImageConfig, ImageSource, TagImage};
use microvm_api::progress::ProgressLine;
use microvm_client::{ClientError, Lines};
use microvm_types::ByteSize;

use crate::commands::image_build::Build;
use crate::commands::image_export::Export;
use crate::commands::lifecycle::each_name;
use crate::context::Context;
use crate::docker_config;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::{age, whole};
use crate::progress;
use crate::settings::absolute;

/// Verbs for images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List images
    #[command(visible_alias = "list")]
    Ls,
    /// Build an image from a recipe or a Dockerfile, or the default image
    Build(Box<Build>),
    /// Import a folder, an OCI layout, a `docker save` archive, a tar or a disk
    #[command(after_help = "\
If a layout or an archive holds several images, write PATH:TAG to choose one.

A disk is a qcow2 or raw file with a Linux root on ext4 (or EROFS), alone or on one of its partitions. A VM of the default template reads
it, never the host. Disks of other kinds are refused by name.")]
    Import(Import),
    /// Fetch an image from a registry
    Pull(Pull),
    /// Write an image as an archive that docker, podman and skopeo read
    Export(Export),
    /// Give an image a further name
    Tag(Tag),
    /// Remove images
    Rm(Remove),
    /// Show everything about an image
    Inspect(Named),
    /// Remove unused images
    Prune,
}

/// Import a folder, an OCI layout, a `docker save` archive, a tar or a disk
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Folder or file to import
    path: Utf8PathBuf,
    /// Name of the image
    #[arg(long)]
    name: String,
}

/// Fetch an image from a registry
#[derive(Debug, Args)]
pub(crate) struct Pull {
    #[arg(help = "host[:port]/name[:tag][@digest]")]
    reference: String,
    /// Name of the image [default: the last part of the reference]
    #[arg(long)]
    name: Option<String>,
    /// Use plain HTTP; only for registries on this host
    #[arg(long, conflicts_with = "ca_file")]
    plain_http: bool,
    /// Also trust the certificate authorities in this PEM file
    #[arg(long, value_name = "FILE")]
    ca_file: Option<Utf8PathBuf>,
}

/// Give an image a further name
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Name or digest
    image: String,
    /// Further name; an image that has it loses it
    name: String,
}

/// Remove images
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Names or digests
    #[arg(required = true)]
    images: Vec<String>,
}

/// Show everything about an image
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name or digest
    image: String,
}

impl Image {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Ls => return list(context).await,
            Self::Inspect(named) => context.output.json(&client.image(&named.image).await?)?,
            Self::Prune => {
                let freed = client.collect_garbage().await?;
                context.output.value(&freed, &format!("{} freed", ByteSize(freed.bytes)))?;
            }
            Self::Rm(remove) => {
                return each_name(context, remove.images, async |image: &String| {
                    client.remove_image(image).await
                })
                .await;
            }
            Self::Tag(tag) => {
                let request = TagImage { image: tag.image, name: tag.name };
                let image = client.tag_image(&request).await?;
                context.output.value(&image, &format!("{} {}", request.name, image.digest))?;
            }
            Self::Export(export) => export.run(context).await?,
            Self::Build(build) => build.run(context).await?,
            Self::Import(import) => {
                let source = ImageSource::Path { path: absolute(&import.path)?.into_string() };
                add(context, &plain(import.name, source)).await?;
            }
            Self::Pull(pull) => {
                let name = pull.name.unwrap_or_else(|| last_part(&pull.reference));
                let read = |path: &Utf8PathBuf| {
                    std::fs::read_to_string(path)
                        .map_err(|error| CliError::file("reading", path.as_str(), &error))
                };
                let login = docker_config::login_for(&pull.reference).await;
                let source = ImageSource::Registry {
                    login,
                    reference: pull.reference,
                    plain_http: pull.plain_http,
                    authorities: pull.ca_file.as_ref().map(read).transpose()?,
                };
                add(context, &plain(name, source)).await?;
            }
        }
        Ok(0)
    }
}

fn plain(name: String, source: ImageSource) -> AddImage {
    AddImage {
        name,
        source,
        packages: Vec::new(),
        pip: Vec::new(),
        npm: Vec::new(),
        files: Vec::new(),
        commands: Vec::new(),
        steps: Vec::new(),
        config: ImageConfig::default(),
        no_cache: false,
    }
}

/// `localhost:5000/team/tool:1.2@sha256:…` is called `tool`.
fn last_part(reference: &str) -> String {
    let without_digest = reference.split('@').next().unwrap_or(reference);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    last.split(':').next().unwrap_or(last).to_owned()
}

/// Makes an image, and shows how far it is.
pub(crate) async fn add(context: &Context, request: &AddImage) -> Result<(), CliError> {
    follow(context, &request.name, context.client.add_image(request)).await
}

/// Shows how far an image is, and prints it when it is there.
pub(crate) async fn follow(
    context: &Context,
    name: &str,
    lines: impl Future<Output = Result<Lines<ProgressLine>, ClientError>>,
) -> Result<(), CliError> {
    let mut interrupts = Interrupts::new()?;
    let work = async { progress::follow(lines.await?).await };
    match interrupts.unless(work).await? {
        ProgressLine::Image { image } => context.output.value(&image, &format!("{name} {}", image.digest)),
        _ => Err(progress::unexpected()),
    }
}

async fn list(context: &Context) -> Result<u8, CliError> {
    let list = context.client.images().await?;
    let row = |image: &ImageBody| {
        vec![
            if image.names.is_empty() { "-".to_owned() } else { image.names.join(", ") },
            // 12 digits are the fewest that the server takes for a digest.
            image.digest.chars().take("sha256:".len() + 12).collect(),
            ByteSize(image.size).to_string(),
            image.file_system.clone(),
            age(&image.created_at),
            image.source.clone(),
        ]
    };
    let rows: Vec<_> = list.images.iter().map(row).collect();
    context.output.table(&list, &["NAME", "DIGEST", "SIZE", "FORMAT", "AGE", "SOURCE"], rows)?;
    Ok(whole("the image", &list.unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_short_names() {
        for (reference, name) in
            [("localhost:5000/a/tool:1", "tool"), ("tool", "tool"), ("h/x@sha256:00", "x")]
        {
            assert_eq!(last_part(reference), name);
        }
    }
}
