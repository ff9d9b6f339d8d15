//! The fast kernel: the distribution's source with our own small configuration, everything built in.

use std::io::Write as _;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{make_directory, names_in, require_space, sha256, write_new};
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::{Progress, StorageError};
use microvm_types::kernel::DeviceDiscovery;

use super::add::NewKernel;
use super::{KERNEL_FRAGMENT, elf, packages};

const MAKE: Tool = Tool { program: "make", package: "make", purpose: "building the fast kernel" };
const GCC: Tool = Tool { program: "gcc", package: "gcc", purpose: "building the fast kernel" };
const LD: Tool = Tool { program: "ld", package: "binutils", purpose: "building the fast kernel" };
const FLEX: Tool = Tool { program: "flex", package: "flex", purpose: "building the fast kernel" };
const BISON: Tool = Tool { program: "bison", package: "bison", purpose: "building the fast kernel" };
const BC: Tool = Tool { program: "bc", package: "bc", purpose: "building the fast kernel" };
const PERL: Tool = Tool { program: "perl", package: "perl", purpose: "building the fast kernel" };
const TAR: Tool = Tool { program: "tar", package: "tar", purpose: "unpacking the kernel's source" };
const STRIP: Tool = Tool { program: "strip", package: "binutils", purpose: "building the fast kernel" };

/// A kernel parameter of ours.
const LAPIC_KHZ: &str = include_str!("../../kernel/lapic_khz.c");
const META_PACKAGE: &str = "linux-source";
/// The unpacked source and the objects of our configuration.
const SPACE: u64 = 3 << 30;
/// Beginning of the origin of a kernel that was built from source.
const BUILT_FROM: &str = "built from package ";
/// Words in the origin of a kernel that takes times on shared folders to the nanosecond.
const FINE_TIMES: &str = " (times on shared folders: nanoseconds)";
/// Line that the source of the 9P file system gets.
const SHARE_TIMES: &str = "\tsb->s_time_gran = 1;\n";
/// Files compiled for our configuration of 6.1, counted once; only for the progress bar.
const OBJECTS: u64 = 1300;
/// Without these a guest does not boot.
const NEEDED: [&str; 11] = [
    "CONFIG_64BIT=y",
    "CONFIG_PVH=y",
    "CONFIG_BLK_DEV_INITRD=y",
    "CONFIG_DEVTMPFS=y",
    "CONFIG_EROFS_FS=y",
    "CONFIG_EXT4_FS=y",
    "CONFIG_OVERLAY_FS=y",
    "CONFIG_VIRTIO_MMIO=y",
    "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y",
    "CONFIG_VIRTIO_BLK=y",
    "CONFIG_VIRTIO_CONSOLE=y",
];
/// Header of the only library that is needed: `objtool` reads the kernel's own objects with it.
const LIBELF: (&str, &str) = ("/usr/include/libelf.h", "libelf-dev");

/// Downloads the source and builds it. Takes minutes.
pub(crate) fn build(
    workspace: &Workspace,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<NewKernel, StorageError> {
    check_tools()?;
    require_space(workspace.path(), SPACE, "building the kernel")?;
    let package = packages::dependency(META_PACKAGE, "linux-source-", cancel)?;
    let unpacked = packages::unpack(&package, workspace, cancel, progress)?;
    let source = unpack_source(&unpacked.join("usr/src"), workspace, cancel, progress)?;
    add_parameter(&source)?;
    let whole_times = keep_share_times(&source)?;
    configure(&source, workspace, cancel, progress)?;
    compile(&source, cancel, progress)?;
    let file = source.join("vmlinux");
    let mut command = STRIP.command()?;
    command.arg(&file);
    STRIP.run(command, cancel, |_| {})?;
    let kernel = std::fs::read(&file).map_err(io_error("reading", &file))?;
    if !elf::has_pvh_entry(&kernel) {
        return Err(bad_input("the kernel that was built", "it has no PVH entry point"));
    }
    let release_file = source.join("include/config/kernel.release");
    let release =
        std::fs::read_to_string(&release_file).map_err(io_error("reading", &release_file))?.trim().to_owned();
    Ok(NewKernel {
        kernel,
        release: Some(release),
        discovery: DeviceDiscovery::CommandLine,
        source: format!("{BUILT_FROM}{package}{}", if whole_times { FINE_TIMES } else { "" }),
        recipe: Some(recipe()),
        modules: Vec::new(),
    })
}

/// SHA-256 of what this version of the program puts into a kernel that it builds: options and changes of the source.
pub(super) fn recipe() -> String {
    sha256([KERNEL_FRAGMENT, LAPIC_KHZ, SHARE_TIMES].concat().as_bytes())
}

/// True for a kernel that was built from source by a version of the program that put other things into it.
pub(super) fn is_outdated(source: &str, made_with: Option<&str>) -> bool {
    source.starts_with(BUILT_FROM) && made_with != Some(recipe().as_str())
}

fn check_tools() -> Result<(), StorageError> {
    for tool in [MAKE, GCC, LD, STRIP, FLEX, BISON, BC, PERL, TAR] {
        tool.command()?;
    }
    if !Utf8Path::new(LIBELF.0).exists() {
        return Err(StorageError::ToolMissing { tool: LIBELF.0.into(), package: LIBELF.1.into() });
    }
    Ok(())
}

/// The package holds one archive, signed as part of the package.
fn unpack_source(
    directory: &Utf8Path,
    workspace: &Workspace,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Utf8PathBuf, StorageError> {
    let archive = names_in(directory)?
        .into_iter()
        .find(|name| name.starts_with("linux-source-") && name.contains(".tar"));
    let archive =
        archive.ok_or_else(|| bad_input("the kernel's source package", "there is no source in it"))?;
    progress.step("unpacking the kernel's source");
    let target = workspace.join("source");
    make_directory(&target, 0o700)?;
    let mut command = TAR.command()?;
    command
        .arg("-xf")
        .arg(directory.join(archive))
        .arg("-C")
        .arg(&target)
        // As root tar would give the files the owners that the archive names.
        .args(["--strip-components=1", "--no-same-owner"]);
    TAR.run(command, cancel, |_| {})?;
    Ok(target)
}

/// Adds a file that the source lacks.
fn add_parameter(source: &Utf8Path) -> Result<(), StorageError> {
    let directory = source.join("arch/x86/kernel");
    write_new(&directory.join("lapic_khz.c"), 0o600, LAPIC_KHZ.as_bytes())?;
    let makefile = directory.join("Makefile");
    let added = std::fs::OpenOptions::new()
        .append(true)
        .open(&makefile)
        .and_then(|mut file| file.write_all(b"\nobj-y += lapic_khz.o\n"));
    added.map_err(io_error("adding to", &makefile))
}

/// Lets the 9P file system take times to the nanosecond, as its protocol does. Its superblock never says how fine its times
/// are, so that `timestamp_truncate` (fs/inode.c) cuts every time that a program sets to whole seconds, the default of
/// `alloc_super`, before the host hears of it. Returns whether the source is one that keeps them now.
fn keep_share_times(source: &Utf8Path) -> Result<bool, StorageError> {
    let path = source.join("fs/9p/vfs_super.c");
    let code = std::fs::read_to_string(&path).map_err(io_error("reading", &path))?;
    match with_share_times(&code) {
        ShareTimes::Kept => Ok(true),
        ShareTimes::Added(code) => {
            std::fs::write(&path, code).map_err(io_error("writing", &path))?;
            Ok(true)
        }
        ShareTimes::Unknown => {
            tracing::warn!(%path, "this source is not known: times set on shared folders are cut to seconds");
            Ok(false)
        }
    }
}

/// Change that a source of the 9P file system needs.
#[derive(Debug, PartialEq, Eq)]
enum ShareTimes {
    /// Nothing: it says how fine its times are.
    Kept,
    /// This is the source with the line that it lacks.
    Added(String),
    /// The place is not there.
    Unknown,
}

fn with_share_times(code: &str) -> ShareTimes {
    const PLACE: &str = "\tsb->s_time_min = 0;\n";
    if code.contains("s_time_gran") {
        return ShareTimes::Kept;
    }
    match code.split_once(PLACE) {
        Some((before, after)) if !after.contains(PLACE) => {
            ShareTimes::Added(format!("{before}{PLACE}{SHARE_TIMES}{after}"))
        }
        _ => ShareTimes::Unknown,
    }
}

fn make(source: &Utf8Path) -> Result<Command, StorageError> {
    let mut command = MAKE.bound_command()?;
    // Nothing of the environment may change what is built, and equal sources give equal kernels.
    for variable in ["MAKEFLAGS", "MFLAGS", "CROSS_COMPILE", "ARCH", "KBUILD_OUTPUT"] {
        command.env_remove(variable);
    }
    command.current_dir(source).envs([
        ("KBUILD_BUILD_USER", "microvm"),
        ("KBUILD_BUILD_HOST", "sandbox"),
        ("KBUILD_BUILD_TIMESTAMP", "1970-01-01T00:00:00Z"),
    ]);
    Ok(command)
}

fn configure(
    source: &Utf8Path,
    workspace: &Workspace,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<(), StorageError> {
    progress.step("configuring the kernel");
    let fragment = workspace.join("fragment.config");
    write_new(&fragment, 0o600, KERNEL_FRAGMENT.as_bytes())?;
    let mut command = make(source)?;
    command.env("KCONFIG_ALLCONFIG", fragment.as_str()).arg("allnoconfig");
    MAKE.run(command, cancel, |_| {})?;
    let path = source.join(".config");
    let configured = std::fs::read_to_string(&path).map_err(io_error("reading", &path))?;
    let lost = lost_options(KERNEL_FRAGMENT, &configured);
    if let Some(option) = lost.iter().find(|option| NEEDED.contains(&option.as_str())) {
        // Silence here would cost minutes of building and end in a kernel that finds no root.
        return Err(bad_input("the kernel's configuration", format!("this source does not take `{option}`")));
    }
    if !lost.is_empty() {
        tracing::warn!(
            options = lost.join(" "),
            "this kernel's source does not take some options of the configuration"
        );
    }
    Ok(())
}

/// Options that were asked for and are not set.
fn lost_options(fragment: &str, configured: &str) -> Vec<String> {
    let set: std::collections::BTreeSet<&str> = configured.lines().collect();
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !set.contains(line))
        .map(str::to_owned)
        .collect()
}

fn compile(source: &Utf8Path, cancel: &Cancel, progress: &Progress) -> Result<(), StorageError> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut command = make(source)?;
    command.args([format!("-j{jobs}"), "vmlinux".into()]);
    let mut built = 0;
    MAKE.run(command, cancel, |line| {
        if line.trim_start().starts_with("CC ") || line.trim_start().starts_with("AS ") {
            built += 1;
            progress.advance("building the kernel", built, Some(OBJECTS.max(built)));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_built_with_other_options_is_outdated() {
        assert!(!is_outdated("built from package x", Some(&recipe())));
        assert!(is_outdated("built from package x", Some("00")));
        assert!(is_outdated("built from package x (times on shared folders: nanoseconds)", None));
        assert!(!is_outdated("/boot/vmlinuz of the user's", None));
    }

    #[test]
    fn lost_options_are_named() {
        assert_eq!(
            lost_options("# a comment\nCONFIG_A=y\nCONFIG_B=y\n", "CONFIG_A=y\n# CONFIG_B is not set\n"),
            ["CONFIG_B=y"]
        );
    }

    #[test]
    fn nine_p_gets_fine_times_once() {
        let code =
            "{\n\tsb->s_magic = V9FS_MAGIC;\n\tsb->s_time_min = 0;\n\n\tret = super_setup_bdi(sb);\n}\n";
        let ShareTimes::Added(fine) = with_share_times(code) else { panic!("the place was not found") };
        assert_eq!(fine.replacen("\tsb->s_time_gran = 1;\n", "", 1), code);
        assert!(fine.contains("s_time_min = 0;\n\tsb->s_time_gran = 1;\n\n\tret"));
        assert_eq!(with_share_times(&fine), ShareTimes::Kept);
        for other in ["", &code.repeat(2)] {
            assert_eq!(with_share_times(other), ShareTimes::Unknown);
        }
    }

    #[test]
    fn the_fragment_has_no_option_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for line in KERNEL_FRAGMENT.lines().filter(|line| line.starts_with("CONFIG_")) {
            assert!(seen.insert(line.split('=').next()), "{line}");
        }
        for needed in NEEDED {
            assert!(KERNEL_FRAGMENT.lines().any(|line| line == needed), "{needed}");
        }
    }
}
