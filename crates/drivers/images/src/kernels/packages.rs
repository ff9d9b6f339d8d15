//! Gets packages of the distribution without installing them. The package manager checks the signatures.

use camino::Utf8PathBuf;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{make_directory, names_in};
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::{Progress, StorageError};

const APT_GET: Tool = Tool { program: "apt-get", package: "apt", purpose: "fetching kernels" };
const APT_CACHE: Tool = Tool { program: "apt-cache", package: "apt", purpose: "finding the kernel package" };
const DPKG_DEB: Tool = Tool { program: "dpkg-deb", package: "dpkg", purpose: "unpacking kernel packages" };

/// The package a meta package depends on whose name begins with `prefix`.
pub(crate) fn dependency(meta: &str, prefix: &str, cancel: &Cancel) -> Result<String, StorageError> {
    let mut command = APT_CACHE.command()?;
    command.args(["depends", "--important", meta]);
    let printed = APT_CACHE.output(command, cancel).map_err(|error| advise(error, meta))?;
    printed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .map(|name| name.trim_matches(['<', '>']))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .ok_or_else(|| {
            bad_input(
                format!("the package `{meta}`"),
                "the package lists of this host do not know it: run `apt-get update`",
            )
        })
}

fn advise(error: StorageError, package: &str) -> StorageError {
    match error {
        StorageError::ToolFailed { tool, status, detail } => StorageError::ToolFailed {
            tool,
            status,
            detail: format!("{detail}; if the package `{package}` is not known, run `apt-get update`"),
        },
        other => other,
    }
}

/// Downloads a package and unpacks it below the workspace; returns where.
pub(crate) fn unpack(
    package: &str,
    workspace: &Workspace,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Utf8PathBuf, StorageError> {
    progress.step(format!("downloading {package}"));
    let download = workspace.join("download");
    make_directory(&download, 0o700)?;
    let mut command = APT_GET.command()?;
    command.current_dir(&download).args(["-q", "download", package]);
    if rustix::process::geteuid().is_root() {
        // Our directory is closed to apt's own download user; signatures and sums are checked all the same.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    APT_GET.run(command, cancel, |_| {}).map_err(|error| advise(error, package))?;
    let file = names_in(&download)?.into_iter().find(|name| name.ends_with(".deb"));
    let file = file.ok_or_else(|| bad_input(format!("the package `{package}`"), "nothing was downloaded"))?;
    progress.step(format!("unpacking {package}"));
    let target = workspace.join("package");
    let mut command = DPKG_DEB.command()?;
    command.arg("-x").arg(download.join(&file)).arg(&target);
    DPKG_DEB.run(command, cancel, |_| {})?;
    std::fs::remove_file(download.join(&file)).map_err(io_error("removing", &download))?;
    Ok(target)
}
