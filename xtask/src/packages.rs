//! Debian packages that building, running and testing need.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{host, run};

/// QEMU itself. Installed before all others and alone, see [`install`].
const QEMU: &str = "qemu-system-x86";

/// Everything else, with what it is for.
const OTHERS: &[&str] = &[
    // Building this repository and the static agent.
    "gcc",
    "libc6-dev",
    "make",
    "pkg-config", //
    // Disks and images.
    "qemu-utils",
    "mmdebstrap",
    "erofs-utils",
    "e2fsprogs",
    "cpio",
    "zstd",
    "xz-utils",
    "uidmap",
    "fakeroot", //
    // The kernel of our own configuration.
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "rsync",
    "kmod", //
    // The file-system suite pjdfstest is linked with it.
    "libacl1-dev", //
    // Tests: a registry on loopback, something to fill it with, and certificates for it.
    "openssl",
    // Tests: `kill`, which a minimal Debian lacks.
    "procps",
    "skopeo",
    "docker-registry", //
    // Tests: what builds images, to read what it writes.
    "buildah",
    "podman",
    "umoci",
];

const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    std::iter::once(QEMU).chain(OTHERS.iter().copied())
}

/// Packages of the list that are not installed.
fn missing() -> Result<Vec<&'static str>> {
    let mut query = run::program("dpkg-query", Duration::from_secs(60));
    query.args(["-W", "-f", "${db:Status-Status} ${Package}\\n"]);
    let known = run::output(&mut query)?;
    let installed: HashSet<&str> = known.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(all().filter(|name| !installed.contains(name)).collect())
}

/// Whether apt knows any package: a fresh machine may have no lists at all.
fn has_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists");
    lists.is_ok_and(|mut lists| {
        lists.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains("_Packages")))
    })
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = as_root("apt-get")?;
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments);
    run::run(&mut command)
}

fn as_root(program: &str) -> Result<Command> {
    if host::is_root() {
        return Ok(run::program(program, INSTALL_LIMIT));
    }
    if !run::succeeds(run::program("sudo", Duration::from_secs(10)).args(["-n", "true"])) {
        bail!("packages are missing and sudo asks for a password: run `sudo -v` first, or run this as root");
    }
    let mut command = run::program("sudo", INSTALL_LIMIT);
    command.args(["--preserve-env=DEBIAN_FRONTEND", program]);
    Ok(command)
}

/// Installs what is missing; does nothing, not even ask for root, if nothing is.
pub(crate) fn install() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() && has_lists() {
        eprintln!("  nothing is missing");
        return Ok(());
    }
    apt(&["update"])?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("  installing {}", missing.join(" "));
    // On a machine with a newer qemu-utils from another suite the two cannot be chosen in one go: apt gives up. Alone,
    // and allowed to go back a version, QEMU pulls its own parts along.
    let install = ["install", "-y", "--no-install-recommends", "--allow-downgrades"];
    if missing.contains(&QEMU) {
        apt(&[&install[..], &[QEMU]].concat())?;
    }
    // Asked for again, because the first step may have removed or installed some.
    let rest = self::missing()?;
    if rest.is_empty() {
        return Ok(());
    }
    apt(&[&install[..], &rest].concat())?;
    match self::missing()?.as_slice() {
        [] => Ok(()),
        still => bail!("still missing after the installation: {}", still.join(" ")),
    }
}
