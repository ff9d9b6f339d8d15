//! An image of Debian packages, put together by `mmdebstrap` and streamed into the image as tar.

use std::process::Stdio;

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

/// Documentation, which has no reader in a disposable machine. Copyright notices stay: their licences ask for that.
const LEFT_OUT: [&str; 8] = [
    "path-exclude=/usr/share/man/*",
    // The directories stay, empty: packages such as Java link into them when they are installed.
    "path-include=/usr/share/man/man[0-9]",
    "path-include=/usr/share/man/*/man[0-9]",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*/LC_MESSAGES/*",
    "path-exclude=/usr/share/lintian/*",
];
/// Removed when everything is installed: lists that age, caches that are rebuilt, what must differ between machines.
const TIDY: &str = "rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/* \"$1\"/var/cache/debconf/*-old \"$1\"/var/log/* \"$1\"/var/lib/dpkg/*-old \
                    \"$1\"/etc/hostname \"$1\"/etc/resolv.conf; : > \"$1\"/etc/machine-id; mkdir -p \"$1\"/var/cache/apt/archives/partial \"$1\"/var/lib/apt/lists/partial; \
                    find \"$1\"/usr -name __pycache__ -type d -prune -exec rm -rf {} +";

/// Takes in a minimal system of `suite` with `packages`.
pub(crate) fn add_debian(
    builder: &mut Builder,
    workspace: &Workspace,
    suite: &str,
    packages: &[String],
) -> Result<(), StorageError> {
    check_words(suite, packages)?;
    let root = rustix::process::geteuid().is_root();
    // As root it would mount into its chroot in everybody's sight, and leave that mounted when it is killed.
    let mut command = if root { MMDEBSTRAP.isolated_command()? } else { MMDEBSTRAP.bound_command()? };
    command.args([if root { "--mode=root" } else { "--mode=unshare" }, "--variant=minbase", "--format=tar"]);
    // Its messages are for people, but their beginnings are stable enough to show progress by.
    command.args([
        "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Retries \"3\"",
    ]);
    for option in LEFT_OUT {
        command.arg(format!("--dpkgopt={option}"));
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
    let scratch = workspace.join("mmdebstrap");
    // Its own temporary tree belongs to our work directory; without root it must be open to the mapped users.
    if root {
        microvm_durable::files::make_directory(&scratch, 0o755)?;
        command.env("TMPDIR", scratch.as_str());
    }
    run(builder, command, suite)
}

fn run(builder: &mut Builder, mut command: std::process::Command, suite: &str) -> Result<(), StorageError> {
    let (messages, writer) =
        std::io::pipe().map_err(io_error("opening a pipe for", camino::Utf8Path::new("mmdebstrap")))?;
    command.stdout(Stdio::piped()).stderr(writer);
    let cancel = builder.cancel.clone();
    let progress = builder.progress.clone();
    progress.step(format!("building Debian {suite}"));
    let mut running = Running::start(MMDEBSTRAP, command, &cancel)?;
    let output = running.take_stdout().ok_or_else(|| bad_input("mmdebstrap", "it has no output"))?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            read_lines(messages, |line| {
                if let Some(step) = line.strip_prefix("I: ") {
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
fn check_words(suite: &str, packages: &[String]) -> Result<(), StorageError> {
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
    match packages.iter().find(|package| !fine(package, b"+-.:=~_/")) {
        Some(package) => Err(bad_input(
            format!("the package name `{}`", package.escape_debug()),
            "it has characters that no package name has",
        )),
        None => Ok(()),
    }
}
