//! Debian packages that building, running and testing need.

mod plan;

use std::collections::HashSet;
use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{host, run};

/// QEMU. It is installed before all others and alone, see [`install`].
const QEMU: &str = "qemu-system-x86";

/// Packages for building the program and running VMs.
const PROGRAM: &[&str] = &[
    // Linking, and the C code of some crates.
    "gcc",
    "libc6-dev",
    "pkg-config",
    // Disks, and images of Debian packages, without root, too.
    "e2fsprogs",
    "mmdebstrap",
    "uidmap",
];

/// Further packages for the tests.
const TESTS: &[&str] = &[
    // Checking what is written.
    "qemu-utils",
    "erofs-utils",
    "cpio",
    "zstd",
    "xz-utils",
    "fakeroot",
    // The kernel of our own configuration.
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "rsync",
    "kmod",
    // The file-system suite pjdfstest is linked with it.
    "libacl1-dev",
    // A registry on loopback, what fills it, and certificates for it.
    "openssl",
    "skopeo",
    "docker-registry",
    // `kill`, which a minimal Debian lacks.
    "procps",
    // Builders of images, whose results are imported.
    "buildah",
    "podman",
    "umoci",
    // Clients of an sshd in a VM, beside rsync.
    "openssh-client",
];

const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The use that packages are installed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Building the program and running VMs.
    Program,
    /// That, and the tests.
    Tests,
}

/// Consent to the installation of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// `--yes` was given.
    Given,
    /// The user is asked before anything is installed.
    Ask,
}

/// Names of the packages for a purpose.
pub(crate) fn all(purpose: Purpose) -> impl Iterator<Item = &'static str> {
    let tests = if purpose == Purpose::Tests { TESTS } else { &[] };
    std::iter::once(QEMU).chain(PROGRAM.iter().chain(tests).copied())
}

/// Packages of the list that are not installed.
fn missing(purpose: Purpose) -> Result<Vec<&'static str>> {
    let mut query = run::program("dpkg-query", Duration::from_secs(60));
    query.args(["-W", "-f", "${db:Status-Status} ${Package}\\n"]);
    let known = run::output(&mut query)?;
    let installed: HashSet<&str> = known.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(all(purpose).filter(|name| !installed.contains(name)).collect())
}

/// True if apt has lists of packages; a fresh machine may have none.
fn has_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists");
    lists.is_ok_and(|mut lists| {
        lists.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains("_Packages")))
    })
}

/// A call of apt that changes nothing, and may be made by anybody.
fn simulation(packages: &[&str]) -> Command {
    let mut command = run::program("apt-get", Duration::from_secs(120));
    command.arg("--simulate").args(INSTALL).args(packages);
    command
}

/// `--allow-downgrades`: on a machine with a newer qemu-utils of another suite, QEMU needs the version of its own suite.
const INSTALL: [&str; 4] = ["install", "-y", "--no-install-recommends", "--allow-downgrades"];

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

/// Shows what apt would do, and asks.
///
/// Returns false if the plan was not whole: what the others bring along is to be shown when QEMU is there.
fn agree(missing: &[&str], consent: Consent) -> Result<bool> {
    // If the others conflict with what is installed now, apt has no plan for them until QEMU is there.
    let steps = [&[QEMU][..], missing].map(|packages| run::output(&mut simulation(packages)));
    let [first, all] = steps.map(|text| text.ok().map(|text| plan::Plan::read(&text)));
    let first = first.filter(|_| missing.contains(&QEMU));
    eprintln!("  missing: {}", missing.join(" "));
    let whole = all.is_some();
    for line in plan::Plan::both(first, all).lines() {
        eprintln!("  {line}");
    }
    if consent == Consent::Given {
        return Ok(whole);
    }
    eprint!("Install them? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was installed");
    }
    Ok(whole)
}

/// Installs the missing packages after the user's consent; does nothing, not even ask for root, if none is missing.
pub(crate) fn install(purpose: Purpose, consent: Consent) -> Result<()> {
    let missing = missing(purpose)?;
    if missing.is_empty() && has_lists() {
        eprintln!("  nothing is missing");
        return Ok(());
    }
    if consent == Consent::Ask && !missing.is_empty() && !std::io::stdin().is_terminal() {
        bail!(
            "packages are missing, and there is no terminal to ask whether to install them: give --yes, or install them \
             yourself ({})",
            missing.join(" ")
        );
    }
    // Only reads the archive's index; without it there is no plan to agree to.
    apt(&["update"])?;
    if missing.is_empty() {
        return Ok(());
    }
    let whole = agree(&missing, consent)?;
    // If the machine has a newer qemu-utils of another suite, apt finds no solution for all packages at once. Alone, and
    // with downgrades allowed, QEMU brings its own parts along.
    if missing.contains(&QEMU) {
        apt(&[&INSTALL[..], &[QEMU]].concat())?;
    }
    // Looked up again, because the first step may have removed or installed some.
    let rest = self::missing(purpose)?;
    if rest.is_empty() {
        return Ok(());
    }
    if !whole {
        agree(&rest, consent)?;
    }
    apt(&[&INSTALL[..], &rest].concat())?;
    match self::missing(purpose)?.as_slice() {
        [] => Ok(()),
        still => bail!("still missing after the installation: {}", still.join(" ")),
    }
}
