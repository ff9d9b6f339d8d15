//! `microvm kernel`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};
use microvm_api::kernel::{AddKernel, Kernel as KernelBody, KernelSource};
use microvm_api::progress::ProgressLine;
use microvm_types::ByteSize;
use microvm_types::kernel::DeviceDiscovery;

use crate::commands::lifecycle::each_name;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::{age, whole};
use crate::progress;
use crate::settings::absolute;

/// Verbs for kernels.
#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// List kernels
    #[command(visible_alias = "list")]
    Ls,
    /// Build the fast kernel from the distribution's source package (some minutes)
    Build(Build),
    /// Add the distribution's kernel, or a file
    Add(Add),
    /// Remove a kernel
    Rm(Remove),
}

/// Source from which a kernel learns its devices.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Finds {
    /// ACPI tables
    Acpi,
    /// The kernel command line
    CommandLine,
}

/// Build the fast kernel from the distribution's source package (some minutes)
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Use the distribution's binary kernel instead (seconds)
    #[arg(long)]
    distribution: bool,
}

/// Add the distribution's kernel, or a file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microvm kernel add --distribution
  microvm kernel add ./vmlinux --name mine --discovery command-line")]
pub(crate) struct Add {
    /// bzImage or vmlinux with virtio-mmio, virtio-blk, virtio-console, EROFS, ext4 and overlayfs built in
    #[arg(required_unless_present = "distribution")]
    file: Option<Utf8PathBuf>,
    /// The distribution's cloud kernel package
    #[arg(long, conflicts_with = "file")]
    distribution: bool,
    /// Name of the kernel
    #[arg(long, required_unless_present = "distribution")]
    name: Option<String>,
    /// Source from which the kernel learns its devices
    #[arg(long, value_enum, default_value = "acpi")]
    discovery: Finds,
}

/// Remove a kernel
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Name of the kernel
    name: String,
}

impl Kernel {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls => return list(context).await,
            Self::Build(build) => {
                let source =
                    if build.distribution { KernelSource::Distribution } else { KernelSource::Build };
                add(context, &AddKernel { name: None, source }).await?;
            }
            Self::Rm(remove) => {
                let names = vec![remove.name];
                return each_name(context, names, async |name: &String| {
                    context.client.remove_kernel(name).await
                })
                .await;
            }
            Self::Add(request) => {
                let source = match request.file {
                    None => KernelSource::Distribution,
                    Some(file) => KernelSource::File {
                        path: absolute(&file)?.into_string(),
                        discovery: match request.discovery {
                            Finds::Acpi => DeviceDiscovery::Acpi,
                            Finds::CommandLine => DeviceDiscovery::CommandLine,
                        },
                    },
                };
                add(context, &AddKernel { name: request.name, source }).await?;
            }
        }
        Ok(0)
    }
}

async fn add(context: &Context, request: &AddKernel) -> Result<(), CliError> {
    let mut interrupts = Interrupts::new()?;
    let work = async { progress::follow(context.client.add_kernel(request).await?).await };
    match interrupts.unless(work).await? {
        ProgressLine::Kernel { kernel } => {
            context.output.value(&kernel, &format!("{} {}", kernel.name, kernel.release))
        }
        _ => Err(progress::unexpected()),
    }
}

async fn list(context: &Context) -> Result<u8, CliError> {
    let list = context.client.kernels().await?;
    let row = |kernel: &KernelBody| {
        vec![
            kernel.name.clone(),
            if kernel.is_default { "*".to_owned() } else { String::new() },
            kernel.release.clone(),
            ByteSize(kernel.size).to_string(),
            age(&kernel.created_at),
            if kernel.outdated { format!("{}, outdated", kernel.source) } else { kernel.source.clone() },
        ]
    };
    let rows: Vec<_> = list.kernels.iter().map(row).collect();
    context.output.table(&list, &["NAME", "DEFAULT", "RELEASE", "SIZE", "AGE", "SOURCE"], rows)?;
    Ok(whole("the kernel", &list.unreadable))
}
