//! An image of Debian packages, put together by `mmdebstrap` and streamed into the image as tar.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};

use camino::Utf8Path;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::write_new;
use microvm_durable::tool::{Running, Tool, read_lines};
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::apt_sources::{self, Entries};
use super::builder::Builder;
use super::tar_image::{Whiteouts, add_tar};

const MMDEBSTRAP: Tool =
    Tool { program: "mmdebstrap", package: "mmdebstrap", purpose: "building images of Debian packages" };

/// Documentation, which has no reader in a disposable machine. Copyright notices stay: their licences ask for that. Written when the
/// essential packages are unpacked: as options of mmdebstrap they start a filter in Python for each of these packages.
const LEFT_OUT: &str = "mkdir -p \"$1\"/etc/dpkg/dpkg.cfg.d; cat > \"$1\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap <<'END'
path-exclude=/usr/share/man/*
# The directories stay, empty: packages such as Java link into them when they are installed.
path-include=/usr/share/man/man[0-9]
path-include=/usr/share/man/*/man[0-9]
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*/LC_MESSAGES/*
path-exclude=/usr/share/lintian/*
END
cd \"$1\"/usr/share && find man doc info lintian locale \\( -type f -o -type l \\) ! -name copyright ! -name locale.alias -delete 2> /dev/null; true";
/// Removed when everything is installed: lists that age, caches that are rebuilt, what must differ between machines.
const TIDY: &str = "rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/* \"$1\"/var/cache/debconf/*-old \"$1\"/var/log/* \"$1\"/var/lib/dpkg/*-old \
                    \"$1\"/etc/hostname \"$1\"/etc/resolv.conf; : > \"$1\"/etc/machine-id; mkdir -p \"$1\"/var/cache/apt/archives/partial \"$1\"/var/lib/apt/lists/partial; \
                    find \"$1\"/usr -name __pycache__ -type d -prune -exec rm -rf {} +";
/// Makes a user, who becomes root with `sudo` if that is installed. A machine is for one user: no password is asked for.
const ADD_USER: &str = "chroot \"$1\" useradd --create-home --shell /bin/bash NAME && if [ -d \"$1\"/etc/sudoers.d ]; then \
                        umask 337; echo 'NAME ALL=(ALL:ALL) NOPASSWD: ALL' > \"$1\"/etc/sudoers.d/NAME; fi";
/// Memory that stays free when a system is put together in memory: all else of the host goes on.
const MEMORY_LEFT_MIB: u64 = 2_048;
/// Least memory that a system is put together in. The default image takes 350 MiB then.
const MEMORY_MIN_MIB: u64 = 1_024;
/// Most memory that a system is put together in: a larger one goes to the disk.
const MEMORY_MAX_MIB: u64 = 4_096;

/// Held while a system is put together in memory: the free memory is measured once, and is there for one.
static IN_MEMORY: Mutex<()> = Mutex::new(());

/// A Debian system to be put together.
pub(crate) struct System<'a> {
    /// Release.
    pub(crate) suite: &'a str,
    /// Packages on top of the minimal system.
    pub(crate) packages: &'a [String],
    /// Users besides root.
    pub(crate) users: &'a [String],
}

/// Takes in a minimal system with packages and users.
pub(crate) fn add_debian(
    builder: &mut Builder,
    workspace: &Workspace,
    system: &System<'_>,
) -> Result<(), StorageError> {
    check_words(system)?;
    let scratch = workspace.join("mmdebstrap");
    // The fsyncs of dpkg are two thirds of the time on a disk.
    let alone = match IN_MEMORY.try_lock() {
        Ok(guard) => Some(guard),
        // Whoever panicked holds no memory any more: what it had mounted ended with its tool.
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let memory = free_memory_mib().saturating_sub(MEMORY_LEFT_MIB).min(MEMORY_MAX_MIB);
    if rustix::process::geteuid().is_root() && alone.is_some() && memory >= MEMORY_MIN_MIB {
        microvm_durable::files::make_directory(&scratch, 0o755)?;
        let mut command = MMDEBSTRAP.command_with_memory(&scratch, memory)?;
        arguments(&mut command, workspace, system, "--mode=root")?;
        command.env("TMPDIR", scratch.as_str());
        let full = AtomicBool::new(false);
        match run(builder, command, system.suite, &full) {
            // Nothing was taken in: it is packed when all of it is there.
            Err(_) if full.into_inner() && builder.is_empty() => {
                builder
                    .progress
                    .step("the system is larger than the free memory: putting it together on the disk");
            }
            result => return result,
        }
        let scratch = workspace.join("mmdebstrap-disk");
        return on_disk(builder, workspace, system, &scratch);
    }
    on_disk(builder, workspace, system, &scratch)
}

/// Puts it together on the disk.
fn on_disk(
    builder: &mut Builder,
    workspace: &Workspace,
    system: &System<'_>,
    scratch: &Utf8Path,
) -> Result<(), StorageError> {
    let root = rustix::process::geteuid().is_root();
    // As root it would mount into its chroot where everybody sees it, and leave that mounted when it is killed.
    let mut command = if root { MMDEBSTRAP.isolated_command()? } else { MMDEBSTRAP.bound_command()? };
    arguments(&mut command, workspace, system, if root { "--mode=root" } else { "--mode=unshare" })?;
    // Its temporary tree belongs to our work directory; without root it must be open to the mapped users.
    if root {
        microvm_durable::files::make_directory(scratch, 0o755)?;
        command.env("TMPDIR", scratch.as_str());
    }
    run(builder, command, system.suite, &AtomicBool::new(false))
}

fn arguments(
    command: &mut Command,
    workspace: &Workspace,
    system: &System<'_>,
    mode: &str,
) -> Result<(), StorageError> {
    let System { suite, packages, users } = *system;
    command.args([mode, "--variant=minbase", "--format=tar"]);
    // Its messages are for people, but their beginnings are stable enough to show progress by.
    command.args([
        "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Retries \"3\"",
    ]);
    command.arg(format!("--extract-hook={LEFT_OUT}"));
    for user in users {
        command.arg(format!("--customize-hook={}", ADD_USER.replace("NAME", user)));
    }
    command.arg(format!("--customize-hook={TIDY}"));
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.args([suite, "-"]);
    for (number, entries) in apt_sources::of_host(suite)?.into_iter().enumerate() {
        let (text, ending) = match entries {
            Entries::Lines(text) => (text, "list"),
            Entries::Stanzas(text) => (text, "sources"),
        };
        let file = workspace.join(&format!("apt-{number}.{ending}"));
        write_new(&file, 0o644, text.as_bytes())?;
        command.arg(&file);
    }
    Ok(())
}

/// Memory that the host can give without swapping (`MemAvailable`, proc(5)), in MiB; 0 if it does not say.
fn free_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}

/// Runs mmdebstrap and takes its output in. `full` becomes true if it had no space left.
fn run(
    builder: &mut Builder,
    mut command: Command,
    suite: &str,
    full: &AtomicBool,
) -> Result<(), StorageError> {
    let (messages, writer) =
        std::io::pipe().map_err(io_error("opening a pipe for", Utf8Path::new("mmdebstrap")))?;
    command.stdout(Stdio::piped()).stderr(writer);
    let cancel = builder.cancel.clone();
    let progress = builder.progress.clone();
    progress.step(format!("building Debian {suite}"));
    let mut running = Running::start(MMDEBSTRAP, command, &cancel)?;
    let output = running.take_stdout().ok_or_else(|| bad_input("mmdebstrap", "it has no output"))?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            read_lines(messages, |line| {
                if line.contains("No space left on device") {
                    full.store(true, Ordering::Relaxed);
                }
                // Hooks are named with their whole text.
                if let Some(step) = line.strip_prefix("I: ").filter(|step| !step.starts_with("running --")) {
                    progress.step(format!("mmdebstrap: {}", step.trim_end_matches("...")));
                }
            })
        });
        // Its output ends early when it fails; then its own words explain more than a cut archive.
        let added = add_tar(builder, "the output of mmdebstrap", output, Whiteouts::Plain);
        if added.is_err() {
            // Dropping kills it, which also ends the reader of its messages.
            if let Err(error @ (StorageError::DiskFull { .. } | StorageError::Io { .. })) = added {
                drop(running);
                let _ = reader.join();
                return Err(error);
            }
        }
        let tail = reader.join().unwrap_or_default();
        running.finish(&tail)?;
        added
    })
}

/// Names go onto a command line and into a list separated by commas.
fn check_words(system: &System<'_>) -> Result<(), StorageError> {
    let System { suite, packages, users } = *system;
    let fine = |word: &str, more: &[u8]| {
        word.len() <= 128
            && word.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    if !fine(suite, b"-") {
        return Err(bad_input(
            format!("the suite `{}`", suite.escape_debug()),
            "a suite is a word such as `bookworm`",
        ));
    }
    if let Some(user) = users.iter().find(|user| !is_user(user)) {
        return Err(bad_input(
            format!("the user `{}`", user.escape_debug()),
            "a user has 1 to 32 small letters, digits, `_` and `-`, and begins with a letter",
        ));
    }
    match packages.iter().find(|package| !fine(package, b"+-.:=~_/")) {
        Some(package) => Err(bad_input(
            format!("the package name `{}`", package.escape_debug()),
            "it has characters that no package name has",
        )),
        None => Ok(()),
    }
}

/// Names that `useradd` takes, and that are safe in a shell and as a file name.
fn is_user(name: &str) -> bool {
    name.len() <= 32
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_names_and_nothing_that_a_shell_reads() {
        for (name, fine) in [
            ("user", true),
            ("dev-1_x", true),
            ("", false),
            ("-x", false),
            ("1a", false),
            ("a b", false),
            ("a;b", false),
            ("$(x)", false),
            ("../x", false),
            ("Root", false),
            ("a'b", false),
            ("a123456789012345678901234567890123", false),
        ] {
            let users = [name.to_owned()];
            let system = System { suite: "bookworm", packages: &[], users: &users };
            assert_eq!(check_words(&system).is_ok(), fine, "{name:?}");
        }
    }
}
