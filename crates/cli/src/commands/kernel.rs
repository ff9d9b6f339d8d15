//! `microvm kernel`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};
use microvm_api::Vm;
use microvm_api::kernel::{AddKernel, Kernel as KernelBody, KernelSource};
use microvm_api::progress::ProgressLine;
use microvm_client::VmQuery;
use microvm_types::kernel::DeviceDiscovery;
use microvm_types::{ByteSize, ErrorKind};

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
#[command(after_help = "\
A kernel that VMs boot is not removed: they run on, but their next start takes another one, or fails. --force removes it all the same.

Exit code: 103 if VMs boot it.")]
pub(crate) struct Remove {
    /// Name of the kernel
    name: String,
    /// Remove it although VMs boot it
    #[arg(short, long)]
    force: bool,
}

/// Name of templates for whichever kernel is the default.
const DEFAULT: &str = "default";
/// Most VMs that are named.
const NAMED: usize = 5;

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
                if !remove.force {
                    refuse_in_use(context, &remove.name).await?;
                }
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

/// Refuses a kernel that VMs boot, also those that boot whichever is the default.
async fn refuse_in_use(context: &Context, name: &str) -> Result<(), CliError> {
    let kernels = context.client.kernels().await?.kernels;
    // The server says that there is none.
    let Some(kernel) = kernels.iter().find(|kernel| kernel.name == name) else { return Ok(()) };
    let is_default = kernel.is_default;
    let vms = context.client.list_vms(&VmQuery::default()).await?.vms;
    let boots = |vm: &&Vm| vm.kernel == name || (is_default && vm.kernel == DEFAULT);
    let users: Vec<&str> = vms.iter().filter(boots).map(|vm| vm.name.as_str()).collect();
    if users.is_empty() {
        return Ok(());
    }
    let more = users.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let shown = users[..users.len().min(NAMED)].join(", ");
    let detail = format!(
        "VMs boot the kernel `{name}`: {shown}{more}; their next start would take another one, or fail: delete them, or add --force"
    );
    Err(CliError::new(ErrorKind::Conflict, "in_use", detail))
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
