//! The root of a disk of a virtual machine as an image.
//!
//! The disk is a stranger's: no file system of it is ever mounted by the host. A VM gets it read-only, finds the root, and sends its
//! files.

use std::collections::BTreeMap;

use camino::Utf8Path;
use futures::StreamExt;
use microvm_ports::guest::ProcessEvent;
use microvm_ports::storage::{ImageConfig, ImageInfo, StorageError};
use microvm_ports::{Guest, GuestError, Progress, PulledArchive};
use microvm_types::VmId;
use microvm_types::exec::ExecRequest;
use microvm_types::template::{DiskFormat, ExtraDisk, InitMode, NetworkMode, Overrides, Template};

use super::Catalog;
use super::build_vm::{of_build, printable, tell_left_out};
use super::paced::paced;
use crate::admission::MIN_DISK_MIB;
use crate::creation::{BootChoice, CreateRequest};
use crate::error::ServiceError;
use crate::vm::guard;
use crate::vm::shared::Shared;
use crate::vms::create_from;

/// Serial number of the disk, by which the script finds it.
const SERIAL: &str = "import";
/// Place of the root in the guest.
const ROOT: &[u8] = b"/run/import";
const SCRIPT: &str = include_str!("disk_root.sh");
/// Bytes of the script's answer that are read: a line for each of 128 partitions is far less.
const ANSWER_MAX: usize = 16 << 10;
/// Characters of a reason that are shown.
const REASON_MAX: usize = 200;

/// Makes an image of the root on a disk.
pub(super) async fn add(
    catalog: &Catalog,
    (name, config): (&str, &ImageConfig),
    (path, format): (&Utf8Path, DiskFormat),
    progress: &Progress,
) -> Result<ImageInfo, ServiceError> {
    progress.step("starting a VM that reads the disk");
    let shared = &catalog.context.shared;
    let disk = ExtraDisk {
        name: SERIAL.parse().expect("a name"),
        path: path.to_string(),
        read_only: true,
        format: Some(format),
    };
    let request = CreateRequest { boot: BootChoice::Cold, ..of_build(shared, Overrides::default()) };
    let vm = create_from(&catalog.context, template(shared, disk)?, request, None).await?.record.id;
    // Removed also when the import is dropped in the middle (then by its actor, in the background).
    let vm = guard::guard(shared, vm);
    let outcome = read(shared, &vm.id, (name, config), (path, format), progress).await;
    guard::remove(vm, "VM that reads a disk").await;
    outcome
}

/// The template of the VM that reads a disk. Whoever made the disk may take the kernel of that VM over: so it has the image and the
/// kernel of the default template, and nothing else that a user gave to that.
fn template(shared: &Shared, disk: ExtraDisk) -> Result<Template, ServiceError> {
    let default = shared.template(None)?;
    let limits = &shared.settings.limits;
    Ok(Template {
        name: disk.name.clone(),
        description: String::new(),
        image: default.image,
        kernel: default.kernel,
        hypervisor: default.hypervisor,
        cpu_percent: None,
        // Of the kernel rather than of its user: without them it may not come up.
        kernel_arguments: default.kernel_arguments,
        vcpus: limits.max_vcpus.min(2),
        memory_mib: limits.max_memory_mib.min(1_024),
        memory_max_mib: None,
        disk_mib: MIN_DISK_MIB,
        network: NetworkMode::Isolated,
        environment: BTreeMap::new(),
        start_commands: Vec::new(),
        warm_up: Vec::new(),
        init: InitMode::Agent,
        boot_timeout_ms: default.boot_timeout_ms,
        labels: BTreeMap::new(),
        extra_disks: vec![disk],
        shares: Vec::new(),
        volumes: Vec::new(),
        hooks: Vec::new(),
    })
}

/// Makes the image in a VM that has the disk.
async fn read(
    shared: &Shared,
    vm: &VmId,
    (name, config): (&str, &ImageConfig),
    (path, format): (&Utf8Path, DiskFormat),
    progress: &Progress,
) -> Result<ImageInfo, ServiceError> {
    let guest = shared.registry.by_id(vm)?.guest(shared).await?;
    progress.step("looking for the root");
    let after = shared.settings.disk_patience;
    // Counted here: the guest may be in the hands of the disk by now, and its agent end nothing.
    let looked = tokio::time::timeout(after, look(&*guest)).await;
    check(path, &looked.map_err(|_| GuestError::Timeout { action: "find the root of the disk", after })??)?;
    progress.step("reading the files of the disk");
    let PulledArchive { data, left_out } = guest.pull_root(ROOT).await?;
    let kind = if format == DiskFormat::Qcow2 { "qcow2 disk" } else { "raw disk" };
    let description = format!("{kind} {}", path.file_name().unwrap_or_default());
    let images = &shared.ports.images;
    let image =
        images.add_image_from_stream(name, &description, config, paced(data), progress.clone()).await?;
    tell_left_out(left_out, progress).await;
    Ok(image)
}

/// Has the guest look what is on the disk, and mount its root if there is one.
async fn look(guest: &dyn Guest) -> Result<String, ServiceError> {
    let command = ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec();
    let request = ExecRequest { command, user: Some("root".to_owned()), ..ExecRequest::default() };
    let mut process = guest.exec(&request).await?;
    let (mut answer, mut errors) = (Vec::new(), Vec::new());
    let failed = |code, output: &[u8]| ServiceError::BuildCommand {
        command: "look for the root of the disk".to_owned(),
        code,
        output: printable(output),
    };
    while let Some(event) = process.events.next().await {
        match event {
            ProcessEvent::Stdout(bytes) if answer.len() < ANSWER_MAX => answer.extend_from_slice(&bytes),
            ProcessEvent::Stderr(bytes) if errors.len() < ANSWER_MAX => errors.extend_from_slice(&bytes),
            ProcessEvent::Exited(status) if status.shell_code() == 0 => {
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            ProcessEvent::Exited(status) => return Err(failed(status.shell_code(), &errors)),
            ProcessEvent::Lost(error) => return Err(error.into()),
            ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_) | ProcessEvent::UpToDate => {}
        }
    }
    Err(failed(255, b"it vanished"))
}

/// Refuses a disk that has no root, or several, and says what it has.
fn check(path: &Utf8Path, answer: &str) -> Result<(), StorageError> {
    let lines = answer.lines().filter_map(|line| line.trim().split_once(' '));
    let (reasons, found): (Vec<_>, Vec<_>) = lines.partition(|(kind, _)| *kind == "reason");
    let with = |kind: &str| found.iter().find(|(other, _)| *other == kind).map(|(_, device)| *device);
    let roots: Vec<&str> =
        found.iter().filter(|(kind, _)| *kind == "root").map(|(_, device)| *device).collect();
    if roots.len() == 1 {
        return Ok(());
    }
    let convert = "start a VM with it as an extra disk, and copy the files of its root out as a tar, which can be imported";
    let detail = if roots.len() > 1 {
        format!("{} of its partitions have a Linux root: {convert}", roots.len())
    } else if with("unclean").is_some() {
        // As the guest says it, whose kernel was given the disk.
        let reason = reasons.last().map_or("no reason is known", |(_, reason)| reason);
        let reason: String = printable(reason.as_bytes()).chars().take(REASON_MAX).collect();
        format!(
            "its file system could not be mounted ({reason}): if its machine was not shut down in order, or if it is damaged, repair it with \
             e2fsck; if the kernel here does not know its features, take one that does: {convert}"
        )
    } else if with("luks").is_some() || with("bitlocker").is_some() {
        format!("it is encrypted ({}): {convert}", if with("luks").is_some() { "LUKS" } else { "BitLocker" })
    } else if with("lvm").is_some() {
        format!("its root is on logical volumes (LVM): {convert}")
    } else if with("raid").is_some() {
        format!("it is part of a RAID: {convert}")
    } else if let Some(kind) = ["xfs", "btrfs"].into_iter().find(|kind| with(kind).is_some()) {
        format!(
            "it has a file system of the kind {kind}, which the kernel here does not read: {convert} with a kernel that does"
        )
    } else if with("ntfs").is_some() {
        "it is a disk of Windows: images have a Linux root".to_owned()
    } else if found.is_empty() || with("missing").is_some() {
        "the VM did not find it: its image needs a shell, dd, od and mount".to_owned()
    } else {
        let kinds: Vec<&str> = found.iter().map(|(kind, _)| *kind).collect();
        format!(
            "it has no Linux root (a file system with /etc and /usr or /bin); it has: {}",
            kinds.join(", ")
        )
    };
    Err(StorageError::BadInput { what: path.to_string(), detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_without_one_root_are_refused_by_what_they_have() {
        let path = Utf8Path::new("/disk.qcow2");
        for fine in ["root vdc\n", "fat vdc1\nswap vdc2\nroot vdc3\nluks vdc4\n"] {
            assert!(check(path, fine).is_ok(), "{fine}");
        }
        for (answer, part) in [
            ("root vdc1\nroot vdc2\n", "2 of its partitions"),
            ("fat vdc1\nunclean vdc2\n", "no reason is known"),
            (
                "fat vdc1\nreason vdc2: EXT4-fs: \u{1b}[31mbad\u{7}\nunclean vdc2\n",
                "(vdc2: EXT4-fs: [31mbad): ",
            ),
            ("ext4 vdc1\nluks vdc2\n", "LUKS"),
            ("bitlocker vdc2\n", "BitLocker"),
            ("ext4 vdc1\nlvm vdc2\n", "LVM"),
            ("raid vdc\n", "RAID"),
            ("fat vdc1\nxfs vdc2\n", "xfs"),
            ("btrfs vdc\n", "btrfs"),
            ("unknown vdc1\nntfs vdc2\n", "Windows"),
            ("missing disk\n", "did not find it"),
            ("", "did not find it"),
            ("unknown vdc\n", "it has: unknown"),
            ("ext4 vdc1\nswap vdc2\n", "it has: ext4, swap"),
        ] {
            let StorageError::BadInput { what, detail } = check(path, answer).unwrap_err() else { panic!() };
            assert!(what == "/disk.qcow2" && detail.contains(part), "{answer}: {detail}");
            assert!(!detail.contains(char::is_control), "{answer}: {detail}");
        }
    }
}
