//! The machine of a VM, as a driver is told of it.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use microvm_ports::branch::IncomingState;
use microvm_ports::hypervisor::{Device, KernelBoot, MachineDisk, MachineSpec, MachineStart};
use microvm_ports::storage::{DiskFormat, ResolvedImage, VmFiles};
use microvm_types::template::{InitMode, Template};
use microvm_types::vm::{Origin, VmRecord};

use super::shares;
use super::stages::Start;
use crate::error::ServiceError;
use crate::ports::Ports;

/// The machine of `record`, in the directory of `files`.
pub(crate) async fn machine_spec(
    ports: &Ports,
    record: &VmRecord,
    image: &ResolvedImage,
    files: VmFiles,
    start: MachineStart,
) -> Result<MachineSpec, ServiceError> {
    let template = &record.template;
    let is_child = matches!(record.origin, Origin::Fork { .. } | Origin::Snapshot { .. });
    let disks = disks(ports, template, image, &files, is_child).await?.into_iter().map(Device::Disk);
    let shares = shares::for_machine(ports, &template.shares).await?.into_iter().map(Device::Share);
    Ok(MachineSpec {
        id: record.id.clone(),
        name: record.name.clone(),
        vcpus: template.vcpus,
        memory_mib: template.machine_memory_mib(),
        cpu_percent: template.cpu_percent,
        start,
        devices: disks.chain(shares).collect(),
        directory: files.directory,
    })
}

/// How the machine of `record` begins. `zero_memory`: for a boot.
pub(crate) fn machine_start(
    record: &VmRecord,
    start: &Start,
    zero_memory: Option<Utf8PathBuf>,
) -> MachineStart {
    match start {
        Start::Boot(kernel) => {
            let mut arguments = record.template.kernel_arguments.clone();
            if let InitMode::Image(program) = &record.template.init {
                // Read by the agent, which starts the program after it has set up the root.
                arguments.push(format!("microvm.init={program}"));
            }
            MachineStart::Boot(KernelBoot {
                kernel: kernel.path.clone(),
                initramfs: kernel.initramfs.clone(),
                discovery: kernel.info.discovery,
                arguments,
                zero_memory,
            })
        }
        Start::State(source) => MachineStart::Incoming(IncomingState {
            parts: source.parts.clone(),
            memory: source.memory.clone(),
            compatibility: source.description.compatibility.clone(),
        }),
    }
}

/// Image, scratch disk, and the template's further disks.
async fn disks(
    ports: &Ports,
    template: &Template,
    image: &ResolvedImage,
    files: &VmFiles,
    is_child: bool,
) -> Result<Vec<MachineDisk>, StorageError> {
    let mut disks = vec![MachineDisk::image(image.path.clone()), files.scratch.clone()];
    for disk in &template.extra_disks {
        // Its own copy, or what a branch put over the user's file.
        if let Some(own) = files.own.iter().find(|own| own.serial == disk.name.as_str()) {
            // Never the user's file again: two VMs would write to it.
            disks.push(own.clone());
            continue;
        }
        if is_child && !disk.read_only {
            return Err(StorageError::Damaged {
                what: format!("the VM's copy of the disk `{}`", disk.name),
                detail: "it is missing, and the original belongs to another VM".to_owned(),
            });
        }
        let path = Utf8PathBuf::from(&disk.path);
        let format = ports.vm_storage.inspect_disk(&path, disk.format).await?;
        disks.push(MachineDisk {
            path,
            format,
            backing: Vec::new(),
            read_only: disk.read_only,
            serial: disk.name.to_string(),
        });
    }
    Ok(disks)
}

/// Fixes the formats of a VM's own disks that are not known yet: those of a template, and of records that were written
/// before formats were kept. Nothing asks the file again afterwards, because the guest can write what it begins with.
///
/// # Errors
/// A file that is not there or cannot be a disk.
pub(crate) async fn fix_formats(ports: &Ports, record: &mut VmRecord) -> Result<(), StorageError> {
    if record.template.extra_disks.iter().all(|disk| disk.format.is_some()) {
        return Ok(());
    }
    let own = ports.vm_storage.vm_files(&record.id).await?.own;
    for disk in record.template.extra_disks.iter_mut().filter(|disk| disk.format.is_none()) {
        // Only raw disks have ever been branched.
        let branched = own.iter().any(|own| own.serial == disk.name.as_str());
        let format = if branched {
            DiskFormat::Raw
        } else {
            ports.vm_storage.inspect_disk(Utf8Path::new(&disk.path), None).await?
        };
        disk.format = Some(format);
    }
    Ok(())
}
