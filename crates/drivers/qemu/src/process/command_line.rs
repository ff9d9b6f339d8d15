//! From a machine specification to a QEMU command line. Paths are those inside the cage.

use camino::Utf8Path;
use microvm_confinement::{FileOwner, Folder, Listener, Mount, MountAccess, OpenFile};
use microvm_ports::LaunchError;
use microvm_ports::hypervisor::{KernelBoot, MachineDisk, MachineShare, MachineSpec, MachineStart};

use microvm_types::kernel::DeviceDiscovery;

use crate::disks;
use crate::probe::accelerator::Kind;
use crate::probe::{compatibility, hardware};
use crate::process::shares;

/// Descriptor numbers in the VMM.
const QMP_DESCRIPTOR: i32 = 10;
const AGENT_DESCRIPTOR: i32 = 11;
/// The console goes to standard output; QEMU's own messages go to standard error.
pub(crate) const CONSOLE_DESCRIPTOR: i32 = 1;
const FIRST_DISK_DESCRIPTOR: i32 = 20;
/// Disks that have a second descriptor; below the numbers that the supervisor keeps for itself.
const FIRST_READING_DESCRIPTOR: i32 = 60;

/// Socket names in the VM directory.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const AGENT_SOCKET: &str = "agent.sock";

/// Path of the memory base in the cage.
pub(crate) const MEMORY_PATH: &str = "/memory";
/// Paths of kernel and initial file system in the cage.
pub(crate) const BOOT_PATHS: [&str; 2] = ["/kernel", "/initramfs"];

/// Disks that every machine has: image and scratch.
const OWN_DISKS: usize = 2;
/// Places for further devices, in the order in which they are taken, where the kernel is told of devices on its command
/// line. There are eight, with the interrupts 5 to 12; QEMU fills them from the last one, and the fifth from there would be
/// number 3 with interrupt 8, which the real-time clock has and does not share.
const FURTHER_PLACES: [&str; 3] = ["virtio-mmio-bus.2", "virtio-mmio-bus.1", "virtio-mmio-bus.0"];

/// Surroundings that QEMU runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surroundings {
    /// In a cage, waiting for `cont`.
    Caged,
    /// The same, and its writable disks are handed over later, with the state that it loads.
    Waiting,
}

/// Everything QEMU is started with.
pub(crate) struct CommandLine {
    pub(crate) surroundings: Surroundings,
    discovery: DeviceDiscovery,
    /// Places of [`FURTHER_PLACES`] that are taken.
    further: usize,
    pub(crate) arguments: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) folders: Vec<Folder>,
    pub(crate) files: Vec<OpenFile>,
    pub(crate) listeners: Vec<Listener>,
    /// Not on the line, but set when its process is started.
    cpu_percent: Option<u32>,
}

/// Builds the command line. The facts behind the options were measured on QEMU 7.2 with TCG:
/// the `microvm` machine boots fastest; without PIT and PIC the guest wedges under TCG; the monitor and channel sockets
/// listen before QEMU starts, so that nothing has to wait for them to appear.
pub(crate) fn build(
    spec: &MachineSpec,
    accelerator: Kind,
    tsc_khz: u64,
    surroundings: Surroundings,
) -> Result<CommandLine, LaunchError> {
    let discovery = discovery(spec)?;
    let mut line = CommandLine {
        surroundings,
        discovery,
        further: 0,
        arguments: Vec::new(),
        mounts: Vec::new(),
        folders: Vec::new(),
        files: Vec::new(),
        listeners: vec![
            Listener { name: QMP_SOCKET.to_owned(), descriptor: QMP_DESCRIPTOR },
            Listener { name: AGENT_SOCKET.to_owned(), descriptor: AGENT_DESCRIPTOR },
        ],
        cpu_percent: spec.cpu_percent,
    };
    line.machine(spec, discovery, accelerator)?;
    match &spec.start {
        MachineStart::Boot(boot) => line.kernel(boot, accelerator, tsc_khz),
        // Kernel and initial file system are in the memory already.
        MachineStart::Incoming(_) => line.push("-incoming", "defer"),
    }
    line.channels();
    for (index, disk) in spec.disks().enumerate() {
        line.disk(spec, index, disk)?;
    }
    line.push("-device", "virtio-balloon-device,id=balloon0");
    for (index, share) in spec.shares().enumerate() {
        line.share(index, share)?;
    }
    Ok(line)
}

/// Way in which the machine tells its kernel of devices: that of the kernel, by ACPI where there are too many for its
/// command line (some 70 ms more to boot), and the one of before in a saved state.
pub(crate) fn discovery(spec: &MachineSpec) -> Result<DeviceDiscovery, LaunchError> {
    match &spec.start {
        MachineStart::Boot(_) if spec.further_devices() > FURTHER_PLACES.len() => Ok(DeviceDiscovery::Acpi),
        MachineStart::Boot(boot) => Ok(boot.discovery),
        MachineStart::Incoming(state) => compatibility::discovery(&state.compatibility),
    }
}

impl CommandLine {
    /// True if QEMU is started alike by both.
    pub(crate) fn starts_alike(&self, other: &Self) -> bool {
        self.arguments == other.arguments
            && self.mounts == other.mounts
            && self.files == other.files
            && self.cpu_percent == other.cpu_percent
    }

    fn push(&mut self, option: &str, value: impl Into<String>) {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.into());
    }

    fn flag(&mut self, option: &str) {
        self.arguments.push(option.to_owned());
    }

    /// Makes a host path visible; returns the path to name it by.
    fn show(&mut self, source: &Utf8Path, target: &str, access: MountAccess) -> String {
        self.mounts.push(Mount { source: source.to_owned(), target: target.into(), optional: false, access });
        target.to_owned()
    }

    /// The property that puts a device beyond those that every machine has in its place; nothing where QEMU's choice is
    /// right.
    fn place(&mut self) -> Result<String, LaunchError> {
        let (most, place) = match self.discovery {
            DeviceDiscovery::Acpi => (hardware::MOST_DEVICES, String::new()),
            DeviceDiscovery::CommandLine => {
                let place = FURTHER_PLACES.get(self.further).copied().unwrap_or_default();
                (FURTHER_PLACES.len(), format!(",bus={place}"))
            }
        };
        if self.further == most {
            return Err(LaunchError::Spec(format!(
                "it has more than {most} further disks and shared folders"
            )));
        }
        self.further += 1;
        Ok(place)
    }

    fn machine(
        &mut self,
        spec: &MachineSpec,
        discovery: DeviceDiscovery,
        accelerator: Kind,
    ) -> Result<(), LaunchError> {
        // Nothing of QEMU's choice and of the host's configuration: the machine is what is said here.
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        self.push("-display", "none");
        // The id first: a process listing tells whose machine it is.
        self.push("-name", format!("guest={}", spec.id));
        self.push(
            "-machine",
            format!(
                // Equal pages of machines may be merged, a crash of QEMU writes no guest's memory to a file, and a
                // saved state carries no description of itself.
                "{},mem-merge=on,dump-guest-core=off,suppress-vmdesc=on,memory-backend=mem",
                hardware::machine_type(discovery)
            ),
        );
        self.push("-bios", hardware::FIRMWARE);
        match accelerator {
            Kind::Kvm => {
                self.push("-accel", "kvm");
                self.push("-cpu", hardware::cpu(accelerator));
                self.show(Utf8Path::new("/dev/kvm"), "/dev/kvm", MountAccess::Device);
            }
            Kind::Tcg => {
                // One thread for each processor: one for all would leave further processors of the host idle.
                self.push("-accel", "tcg,thread=multi");
                self.push("-cpu", hardware::cpu(accelerator));
            }
        }
        self.push("-smp", spec.vcpus.to_string());
        self.push("-m", format!("{}M", spec.memory_mib));
        let base = spec
            .memory_base()
            .ok_or_else(|| LaunchError::Spec("it has no file for its memory to be mapped over".to_owned()))?;
        let base = self.show(base, MEMORY_PATH, MountAccess::Read);
        self.push(
            "-object",
            // Not shared: what the guest writes becomes pages of this process, and the base stays as it is for
            // others.
            format!("memory-backend-file,id=mem,size={}M,mem-path={base},share=off", spec.memory_mib),
        );
        // A device state without configuration section can be loaded by a child that is started with the same options.
        self.push("-global", "migration.send-configuration=off");
        // A reset ends the process: every boot starts from a known state.
        self.flag("-no-reboot");
        // Paused until `cont`: a machine is handed to core before its first instruction.
        self.flag("-S");
        self.push("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        Ok(())
    }

    fn kernel(&mut self, boot: &KernelBoot, accelerator: Kind, tsc_khz: u64) {
        let kernel = self.show(&boot.kernel, BOOT_PATHS[0], MountAccess::Read);
        let initramfs = self.show(&boot.initramfs, BOOT_PATHS[1], MountAccess::Read);
        self.push("-kernel", kernel);
        self.push("-initrd", initramfs);
        let mut words = vec![
            "console=ttyS0".to_owned(),
            "quiet".to_owned(),
            // Reset by triple fault: works without ACPI and without a keyboard controller.
            "reboot=t".to_owned(),
            "panic=-1".to_owned(),
            // The clock of the guest: its counter's frequency is told, and neither it nor timers are tried out at
            // boot.
            format!("tsc_early_khz={tsc_khz}"),
            "tsc=reliable".to_owned(),
            "no_timer_check".to_owned(),
            // Without it programs wait for random numbers, which a quiet guest gathers slowly.
            "random.trust_cpu=on".to_owned(),
            // Room for each processor's variables in small pages: in large ones the list of their owners alone takes 4 MiB of
            // an idle guest.
            "percpu_alloc=page".to_owned(),
        ];
        if boot.discovery == DeviceDiscovery::CommandLine {
            // Our own kernel (crates/drivers/images/kernel). QEMU and KVM count nanoseconds.
            words.push("lapic_khz=1000000".to_owned());
        }
        if accelerator == Kind::Tcg {
            // TCG translates a program anew at every new address: without randomised addresses `true` starts in a quarter
            // of the time (docs/design/0008). A guest that wants them sets kernel.randomize_va_space.
            words.push("norandmaps".to_owned());
        }
        words.extend(boot.arguments.iter().cloned());
        self.push("-append", words.join(" "));
    }

    fn channels(&mut self) {
        self.push("-chardev", format!("socket,id=qmp,fd={QMP_DESCRIPTOR},server=on,wait=off"));
        self.push("-mon", "chardev=qmp,mode=control");
        // Standard output is the console's pipe, standard input is empty.
        self.push("-chardev", "stdio,id=console,signal=off");
        self.push("-serial", "chardev:console");
        self.push("-device", "virtio-serial-device,id=serial0,max_ports=2");
        self.push("-chardev", format!("socket,id=agent,fd={AGENT_DESCRIPTOR},server=on,wait=off"));
        self.push("-device", "virtserialport,bus=serial0.0,chardev=agent,name=agent,nr=1");
    }

    fn disk(&mut self, spec: &MachineSpec, index: usize, disk: &MachineDisk) -> Result<(), LaunchError> {
        let node = if self.surroundings == Surroundings::Waiting && !disk.read_only {
            disks::placeholder(index)
        } else {
            self.disk_node(spec, index, disk)?
        };
        let drive = node["node-name"].as_str().unwrap_or_default().to_owned();
        self.push("-blockdev", node.to_string());
        let place = if index < OWN_DISKS { String::new() } else { self.place()? };
        // A full disk of the host pauses the guest, which is resumed when there is room; told as an error it would make the
        // guest's file systems read-only for good. Other errors are the guest's to know.
        self.push(
            "-device",
            format!(
                "virtio-blk-device,id={name},drive={drive},serial={serial},werror=enospc,rerror=report{place}",
                name = disks::first_node(index),
                serial = disk.serial
            ),
        );
        Ok(())
    }

    /// The disk with all that is below it, opened when QEMU starts.
    fn disk_node(
        &mut self,
        spec: &MachineSpec,
        index: usize,
        disk: &MachineDisk,
    ) -> Result<serde_json::Value, LaunchError> {
        // What is ours can be mounted; a user's disk may lie where the VMM's own user has no business.
        let ours = disk.path.starts_with(&spec.directory) || index == 0;
        let file = if ours && !disk.read_only && self.surroundings == Surroundings::Caged {
            self.reopened(index, disk)?
        } else if ours {
            let target = format!("/disk-{index}");
            let access = if disk.read_only { MountAccess::Read } else { MountAccess::Write };
            self.show(&disk.path, &target, access)
        } else {
            self.opened(index, disk)?
        };
        let below: Vec<String> = disk
            .backing
            .iter()
            .enumerate()
            .map(|(depth, path)| self.show(path, &format!("/disk-{index}-below-{depth}"), MountAccess::Read))
            .collect();
        Ok(disks::tree(index, disk, &file, &below))
    }

    fn share(&mut self, index: usize, share: &MachineShare) -> Result<(), LaunchError> {
        let target = format!("/share-{index}");
        let (export, device) = shares::arguments(share, &target)?;
        let place = self.place()?;
        self.push("-fsdev", export);
        self.push("-device", device + &place);
        let (source, writable) = (share.source.clone(), !share.read_only);
        self.folders.push(Folder { source, target: target.into(), writable });
        Ok(())
    }

    /// A user's disk is opened by the supervisor with the server's rights and handed over.
    fn opened(&mut self, index: usize, disk: &MachineDisk) -> Result<String, LaunchError> {
        let number = i32::try_from(index).map_err(|_| LaunchError::Spec("too many disks".to_owned()))?;
        let (descriptor, set) = (FIRST_DISK_DESCRIPTOR + number, 10 + index);
        let (path, writable) = (disk.path.clone(), !disk.read_only);
        self.files.push(OpenFile { path, writable, descriptor, owner: FileOwner::User });
        self.push("-add-fd", format!("fd={descriptor},set={set}"));
        Ok(format!("/dev/fdset/{set}"))
    }

    /// The VM's own writable disk: QEMU opens it again whenever its use changes, for which it has one descriptor to write and
    /// one to read. By its path it could not once its supervisor, which answers such opens, is gone. The set is marked as
    /// those of later overlays are, so that it is forgotten when the file is no part of the disk any more.
    fn reopened(&mut self, index: usize, disk: &MachineDisk) -> Result<String, LaunchError> {
        let number = i32::try_from(index).map_err(|_| LaunchError::Spec("too many disks".to_owned()))?;
        let set = 10 + index;
        let mark = disks::mark_of(&disks::first_node(index), &disk.path);
        for (writable, first) in [(true, FIRST_DISK_DESCRIPTOR), (false, FIRST_READING_DESCRIPTOR)] {
            let (path, descriptor) = (disk.path.clone(), first + number);
            self.files.push(OpenFile { path, writable, descriptor, owner: FileOwner::Vm });
            self.push("-add-fd", format!("fd={descriptor},set={set},opaque={mark}"));
        }
        Ok(format!("/dev/fdset/{set}"))
    }
}

#[cfg(test)]
mod tests;
