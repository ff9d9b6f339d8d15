//! Starting a confined QEMU process.

use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_confinement::{CageSpec, FOLDER_STEP, Mount, MountAccess, ProcessRecord, SpawnError, spawn};
use microvm_ports::LaunchError;
use microvm_ports::hypervisor::{MachineSpec, MachineStart};

use crate::config::QemuConfig;
use crate::disks;
use crate::probe::Host;
use crate::process::command_line::{self, CONSOLE_DESCRIPTOR, CommandLine};
use crate::process::console;

/// Memory of QEMU and the kernel beyond the guest's: measured 55 MiB for an idle guest of 512 MiB under TCG, plus
/// translated code (QEMU gives it up to 1 GiB), plus page cache of the guest's disks, which the kernel gives back.
const MEMORY_OVERHEAD: u64 = 1_280 << 20;
/// QEMU has one thread per processor, a main loop, an RCU thread and up to 64 block workers.
const TASK_LIMIT: u32 = 256;

/// Bytes of a file beyond its disk: headers, tables that are written anew, a device state.
const FILE_OVERHEAD: u64 = 256 << 20;

/// Starts QEMU for `spec` with the command line `line`; its QMP socket listens when this returns.
pub(crate) async fn start(
    config: &QemuConfig,
    host: &Host,
    spec: &MachineSpec,
    line: CommandLine,
    user: Option<u32>,
) -> Result<ProcessRecord, LaunchError> {
    let CommandLine { arguments, mut mounts, folders, files, listeners, .. } = line;
    for (path, optional) in [
        ("/usr/lib", false),
        ("/usr/lib64", true),
        ("/lib", true),
        ("/lib64", true),
        ("/etc/ld.so.cache", true),
        ("/usr/share/qemu", false),
        ("/usr/share/seabios", true),
        ("/dev/null", false),
        ("/dev/urandom", true),
    ] {
        if is_link(path) {
            continue; // a merged /usr: the cage has the same links
        }
        let access = if path.starts_with("/dev/") { MountAccess::Device } else { MountAccess::Read };
        mounts.push(Mount { source: path.into(), target: path.into(), optional, access });
    }
    mounts.push(Mount {
        source: host.program.clone(),
        target: host.program.clone(),
        optional: false,
        access: MountAccess::Read,
    });
    let cage = CageSpec {
        id: spec.id.to_string(),
        program: host.program.clone(),
        arguments,
        environment: [("LANG".to_owned(), "C".to_owned())].into(),
        directory: spec.directory.clone(),
        mounts,
        folders,
        read_only_opens: vec![command_line::MEMORY_PATH.into()],
        files,
        listeners,
        console_descriptor: CONSOLE_DESCRIPTOR,
        console_cap: config.console_cap,
        user,
        limits: host.limits,
        memory_limit: (u64::from(spec.memory_mib) << 20) + MEMORY_OVERHEAD,
        task_limit: TASK_LIMIT,
        cpu_percent: spec.cpu_percent,
        file_limit: file_limit(spec)?,
        // A guest's memory is of a file and has none. QEMU asks for them for the code it translates: a boot fills some, of
        // which a forked machine needs little, and zeroing them took a tenth of a mass fork (docs/design/0017).
        huge_pages: matches!(spec.start, MachineStart::Boot(_)),
        write_tracking: host.write_tracking,
    };
    spawn(&config.launcher, &cage, config.start_deadline).await.map(|spawned| spawned.record).map_err(
        |error| match error {
            SpawnError::Timeout(after) => LaunchError::Timeout { step: "starting its process", after },
            SpawnError::Cage { step, detail } if step == FOLDER_STEP => LaunchError::Share(detail),
            SpawnError::Cage { step, detail } => {
                LaunchError::Process { step: "confining it", detail: format!("{step}: {detail}") }
            }
            other @ SpawnError::Supervisor { .. } => {
                LaunchError::Process { step: "starting its process", detail: with_source(&other) }
            }
        },
    )
}

/// Bytes that the largest file of the machine may have: a disk with the tables of its format, or the memory. `None` if it
/// shares a folder in which the guest may write files of any size.
fn file_limit(spec: &MachineSpec) -> Result<Option<u64>, LaunchError> {
    if spec.shares().any(|share| !share.read_only) {
        return Ok(None);
    }
    let mut largest = u64::from(spec.memory_mib) << 20;
    for (_, disk) in spec.writable_disks() {
        let size = disks::size_of(disk).map_err(|error| LaunchError::Process {
            step: "finding out how large its disks are",
            detail: format!("{}: {error}", disk.path),
        })?;
        largest = largest.max(size);
    }
    // The tables of qcow2 are below a thousandth with our clusters; those of users may be of 512 bytes: an eighth.
    Ok(Some(largest.saturating_add(largest / 4).saturating_add(FILE_OVERHEAD)))
}

fn is_link(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error} ({source})"))
}

/// The error of a QEMU that ended before it greeted.
pub(crate) fn died(directory: &Utf8Path) -> LaunchError {
    let exit = microvm_confinement::ExitRecord::read(directory).ok().flatten();
    let how = exit.map_or_else(|| "it ended".to_owned(), |exit| exit.to_string());
    let words = console::last_words(directory);
    LaunchError::Died { detail: if words.is_empty() { how } else { format!("{how}: {words}") } }
}

/// The VM's own writable disks belong to the user id of its VMM; everything else stays the server's. What lies below them in
/// the VM's directory, since a branch was begun and not kept, may have been another VMM's: it may be read.
pub(crate) fn give_files(spec: &MachineSpec, user: Option<u32>) -> Result<(), LaunchError> {
    let failed = |error: std::io::Error| LaunchError::Process {
        step: "giving it its disk",
        detail: error.to_string(),
    };
    let ours = |path: &&Utf8PathBuf| path.starts_with(&spec.directory);
    for (_, disk) in spec.writable_disks() {
        if ours(&&disk.path) {
            // Not through a link, which a VMM of before could have put here.
            std::os::unix::fs::lchown(&disk.path, user, user).map_err(failed)?;
        }
        for path in disk.backing.iter().filter(ours) {
            let readable = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(path, readable).map_err(failed)?;
        }
    }
    Ok(())
}
