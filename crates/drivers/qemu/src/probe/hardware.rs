//! The machine that guests see: what has to be alike where a saved state is loaded.

use microvm_types::kernel::DeviceDiscovery;

use super::accelerator::Kind;

/// Processor under TCG. Without "enhanced rep movsb" the guest's kernel copies by plain instructions, which TCG
/// translates to code 1.5 to 2 times as fast (measured: raw channel 206 → 317 MB/s to the guest, 170 → 347 MB/s back).
pub(crate) const TCG_CPU: &str = "max,-erms,-fsrm";

/// Always named: left to itself the machine takes SeaBIOS where it has ACPI, under which the distribution's kernel hangs
/// for ever. Debian 12 hides that by a link from one to the other; no later release does.
pub(crate) const FIRMWARE: &str = "qboot.rom";

/// Further devices of one machine, beyond channel, balloon, image and scratch disk. With ACPI the machine has a second I/O
/// APIC, whose 24 interrupts are 24 virtio-mmio places (hw/i386/microvm.c). A kernel that is usually told of its devices on
/// its command line finds them by ACPI as well.
pub(crate) const MOST_DEVICES: usize = 20;

/// The machine without what differs between machines that can load each other's states.
pub(crate) fn machine_type(discovery: DeviceDiscovery) -> String {
    let acpi = match discovery {
        DeviceDiscovery::Acpi => "on",
        DeviceDiscovery::CommandLine => "off",
    };
    format!("microvm,acpi={acpi},rtc=on,pit=on,pic=on,isa-serial=on")
}

/// Model and flags of the guest's processor.
pub(crate) const fn cpu(accelerator: Kind) -> &'static str {
    match accelerator {
        Kind::Kvm => "host",
        Kind::Tcg => TCG_CPU,
    }
}
