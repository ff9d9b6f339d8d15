use microvm_ports::branch::{IncomingState, StateMemory};
use microvm_ports::hypervisor::Device;
use microvm_ports::storage::DiskFormat;
use microvm_types::VmId;
use serde_json::{Value, json};

use super::*;

fn share(tag: &str, source: &str, read_only: bool) -> Device {
    Device::Share(MachineShare { source: source.into(), tag: tag.into(), read_only })
}

fn spec() -> MachineSpec {
    MachineSpec {
        id: VmId::from_parts(1, 2),
        name: "dev".parse().unwrap(),
        vcpus: 2,
        memory_mib: 256,
        cpu_percent: None,
        start: MachineStart::Boot(KernelBoot {
            kernel: "/s/kernels/k/vmlinux".into(),
            initramfs: "/s/kernels/k/initramfs".into(),
            discovery: DeviceDiscovery::CommandLine,
            arguments: vec!["microvm.init=/sbin/init".into()],
            zero_memory: Some("/s/memory/zero-256.mem".into()),
        }),
        devices: vec![
            Device::Disk(MachineDisk::image("/s/images/i".into())),
            Device::Disk(MachineDisk {
                path: "/s/vms/x/scratch.qcow2".into(),
                format: DiskFormat::Qcow2,
                backing: vec!["/s/base.raw".into()],
                read_only: false,
                serial: "scratch".into(),
            }),
            share("share0", "/home/u/a,b=c", true),
            // A disk among the folders: kinds have an order of their own each.
            Device::Disk(MachineDisk {
                path: "/home/u/data.qcow2".into(),
                format: DiskFormat::Qcow2,
                backing: vec![],
                read_only: false,
                serial: "data".into(),
            }),
            share("share1", "/home/u/out", false),
        ],
        directory: "/s/vms/x".into(),
    }
}

fn value_of<'a>(line: &'a CommandLine, option: &str) -> Vec<&'a str> {
    line.arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

#[test]
fn host_paths_never_reach_the_vmm_except_as_mounts() {
    let line = build(&spec(), Kind::Tcg, 2_600_000, Surroundings::Caged).unwrap();
    assert!(line.arguments.iter().all(|argument| !argument.contains("/s/") && !argument.contains("/home/")));
    assert!(line.mounts.iter().any(|mount| mount.source == "/s/base.raw"));
    let files: Vec<_> =
        line.files.iter().map(|file| (file.path.as_str(), file.writable, file.owner)).collect();
    // Its own disk twice, so that QEMU can open it again for less.
    let own = |writable| ("/s/vms/x/scratch.qcow2", writable, FileOwner::Vm);
    assert_eq!(files, [own(true), own(false), ("/home/u/data.qcow2", true, FileOwner::User)]);
    let numbers: std::collections::BTreeSet<i32> = line.files.iter().map(|file| file.descriptor).collect();
    assert_eq!(numbers.len(), line.files.len());
}

#[test]
fn a_folder_is_read_only_on_both_sides_of_the_vmm() {
    let line = build(&spec(), Kind::Tcg, 2_600_000, Surroundings::Caged).unwrap();
    let exports = value_of(&line, "-fsdev");
    assert!(exports[0].contains("path=/share-0,") && exports[0].contains("readonly=on"), "{}", exports[0]);
    assert!(exports[1].contains("path=/share-1,") && exports[1].contains("readonly=off"), "{}", exports[1]);
    assert_eq!((line.folders[0].source.as_str(), line.folders[0].writable), ("/home/u/a,b=c", false));
    assert!(line.folders[1].writable);
    assert!(line.mounts.iter().all(|mount| !mount.source.starts_with("/home")));
}

#[test]
fn the_firmware_is_never_left_to_the_machine() {
    for surroundings in [Surroundings::Caged, Surroundings::Waiting] {
        let line = build(&spec(), Kind::Tcg, 2_600_000, surroundings).unwrap();
        assert_eq!(value_of(&line, "-bios"), ["qboot.rom"]);
    }
}

#[test]
fn no_device_gets_the_interrupt_of_the_clock() {
    let mut spec = spec();
    let line = build(&spec, Kind::Tcg, 2_600_000, Surroundings::Caged).unwrap();
    let placed = |line: &CommandLine| -> Vec<String> {
        let devices =
            value_of(line, "-device").into_iter().filter_map(|device| device.split_once(",bus=virtio"));
        devices.map(|(_, place)| place.to_owned()).collect()
    };
    assert_eq!(placed(&line), ["-mmio-bus.2", "-mmio-bus.1", "-mmio-bus.0"]);
    assert!(value_of(&line, "-machine")[0].contains("acpi=off"));
    // One more than its command line can tell of: ACPI tables do, and QEMU chooses the places.
    let more = |index: usize| share(&format!("share{index}"), "/home/u/more", true);
    spec.devices.push(more(2));
    let line = build(&spec, Kind::Tcg, 2_600_000, Surroundings::Caged).unwrap();
    assert!(placed(&line).is_empty() && value_of(&line, "-machine")[0].contains("acpi=on"));
    assert_eq!(discovery(&spec).unwrap(), DeviceDiscovery::Acpi);
    spec.devices.extend((3..hardware::MOST_DEVICES - 1).map(more));
    assert_eq!(spec.further_devices(), hardware::MOST_DEVICES);
    let line = build(&spec, Kind::Tcg, 2_600_000, Surroundings::Caged).unwrap();
    let devices = value_of(&line, "-device").into_iter().filter(|device| device.starts_with("virtio-"));
    assert_eq!(devices.count(), 24, "one at each pin of the second I/O APIC");
    spec.devices.push(more(hardware::MOST_DEVICES));
    assert!(build(&spec, Kind::Tcg, 2_600_000, Surroundings::Caged).is_err());
}

#[test]
fn a_saved_state_keeps_its_places() {
    let mut spec = spec();
    let state = IncomingState {
        parts: Default::default(),
        memory: StateMemory::Pages { base: "/s/memory/x.mem".into(), pages: Default::default() },
        compatibility: [("machine".to_owned(), hardware::machine_type(DeviceDiscovery::CommandLine))].into(),
    };
    spec.start = MachineStart::Incoming(state);
    assert_eq!(discovery(&spec).unwrap(), DeviceDiscovery::CommandLine);
    spec.devices.extend_from_within(2..);
    assert_eq!(discovery(&spec).unwrap(), DeviceDiscovery::CommandLine, "it was booted with ACPI now");
}

#[test]
fn a_qcow2_never_follows_its_own_header() {
    let line = build(&spec(), Kind::Tcg, 2_600_000, Surroundings::Caged).unwrap();
    let nodes: Vec<Value> =
        value_of(&line, "-blockdev").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(nodes[2]["backing"], Value::Null);
    assert!(nodes[2].as_object().unwrap().contains_key("backing"));
    assert_eq!(nodes[1]["backing"]["read-only"], json!(true));
}

#[test]
fn one_that_waits_knows_no_writable_disk() {
    let spec = spec();
    let waiting = build(&spec, Kind::Tcg, 2_600_000, Surroundings::Waiting).unwrap();
    let shown = |path: &str| waiting.mounts.iter().any(|mount| mount.source == path);
    assert!(shown("/s/images/i") && !shown("/s/base.raw") && !shown("/s/vms/x/scratch.qcow2"));
    assert!(waiting.files.is_empty());
    let drives: Vec<_> = value_of(&waiting, "-device")
        .into_iter()
        .filter_map(|device| device.strip_prefix("virtio-blk-device,id=")?.split(',').nth(1))
        .collect();
    assert_eq!(drives, ["drive=disk0", "drive=disk1-later", "drive=disk2-later"]);
}

#[test]
fn variables_of_processors_lie_in_small_pages() {
    let line = build(&spec(), Kind::Tcg, 2_600_123, Surroundings::Caged).unwrap();
    assert!(value_of(&line, "-append")[0].split(' ').any(|word| word == "percpu_alloc=page"));
}

#[test]
fn the_guest_is_told_its_clock() {
    let line = build(&spec(), Kind::Tcg, 2_600_123, Surroundings::Caged).unwrap();
    assert!(value_of(&line, "-append")[0].contains("tsc_early_khz=2600123"));
    assert!(value_of(&line, "-machine")[0].contains("acpi=off"));
    assert_eq!(value_of(&line, "-cpu"), [hardware::TCG_CPU]);
}
