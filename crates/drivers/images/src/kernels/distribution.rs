//! The distribution's cloud kernel: verified by the package manager, never installed on the host.

use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::names_in;
use microvm_durable::workspace::Workspace;
use microvm_ports::{Progress, StorageError};
use microvm_types::kernel::DeviceDiscovery;

use super::add::NewKernel;
use super::{bzimage, modules, packages};

#[cfg(target_arch = "aarch64")]
const META_PACKAGE: &str = "linux-image-cloud-arm64";
#[cfg(not(target_arch = "aarch64"))]
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Downloads and unpacks it.
pub(crate) fn fetch(
    workspace: &Workspace,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<NewKernel, StorageError> {
    progress.step("looking for the kernel package");
    let package = packages::dependency(META_PACKAGE, "linux-image-", cancel)?;
    let tree = packages::unpack(&package, workspace, cancel, progress)?;
    let boot = tree.join("boot");
    let file = names_in(&boot)?.into_iter().find(|name| name.starts_with("vmlinuz-"));
    let file =
        file.ok_or_else(|| bad_input(format!("the package `{package}`"), "there is no kernel in it"))?;
    let release = file.trim_start_matches("vmlinuz-").to_owned();
    let path = boot.join(&file);
    let image = std::fs::read(&path).map_err(io_error("reading", &path))?;
    progress.step("unpacking the kernel");
    // Merged or not, depending on the release of the distribution.
    let roots = ["lib", "usr/lib"].map(|lib| tree.join(lib).join("modules").join(&release));
    let root = roots.iter().find(|root| root.is_dir());
    let root =
        root.ok_or_else(|| bad_input(format!("the package `{package}`"), "there are no modules in it"))?;
    let modules = modules::choose(root)?;
    let kernel = bzimage::extract_vmlinux(&image).unwrap_or(image);
    // This kernel is not built to look for devices on its command line.
    Ok(NewKernel {
        kernel,
        release: Some(release),
        discovery: DeviceDiscovery::Acpi,
        source: format!("package {package}"),
        recipe: None,
        modules,
    })
}
