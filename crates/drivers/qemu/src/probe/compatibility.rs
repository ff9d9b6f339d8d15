//! Needs of saved states.

use microvm_ports::LaunchError;
use microvm_ports::branch::Compatibility;
use microvm_types::kernel::DeviceDiscovery;

use super::Host;
use super::accelerator::Kind;
use super::hardware;

/// Everything the format or the meaning of a device state depends on. Another QEMU build may lay it out differently; a
/// processor without a feature the guest found at boot would stop it.
pub(crate) fn of(host: &Host, discovery: DeviceDiscovery) -> Compatibility {
    let kind = host.accelerator.kind;
    let mut needs = Compatibility::from([
        ("VMM".to_owned(), format!("QEMU {}", host.version)),
        ("accelerator".to_owned(), kind.name().to_owned()),
        ("processor".to_owned(), hardware::cpu(kind).to_owned()),
        (MACHINE.to_owned(), hardware::machine_type(discovery)),
        // The guest measures its time by a counter of this frequency (a thousandth is lost in measuring it).
        ("clock".to_owned(), format!("{} MHz", (host.tsc_khz + 500) / 1_000)),
    ]);
    if kind == Kind::Kvm {
        needs.insert("host processor".to_owned(), host_processor());
    }
    needs
}

fn host_processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    format!("{} ({})", field("model name"), field("flags"))
}

/// Name of the need that tells the machine type, and with it the source from which the saved kernel learnt of its devices.
const MACHINE: &str = "machine";

/// Source from which the kernel in a saved state learnt of its devices.
///
/// # Errors
/// [`LaunchError::Incompatible`] for a machine type that this driver does not make.
pub(crate) fn discovery(needed: &Compatibility) -> Result<DeviceDiscovery, LaunchError> {
    let machine = needed.get(MACHINE).map_or("", String::as_str);
    [DeviceDiscovery::CommandLine, DeviceDiscovery::Acpi]
        .into_iter()
        .find(|discovery| hardware::machine_type(*discovery) == machine)
        .ok_or_else(|| LaunchError::Incompatible {
            what: MACHINE.to_owned(),
            needed: machine.to_owned(),
            here: hardware::machine_type(DeviceDiscovery::CommandLine),
        })
}

/// Needs of the machine that a state with these needs is loaded into, which are the same.
///
/// # Errors
/// [`LaunchError::Incompatible`] with the first need that this host does not meet.
pub(crate) fn met(host: &Host, needed: &Compatibility) -> Result<Compatibility, LaunchError> {
    // A machine type that nobody here makes differs from either.
    let discovery = discovery(needed);
    let here = of(host, *discovery.as_ref().unwrap_or(&DeviceDiscovery::CommandLine));
    check(needed, &here)?;
    discovery.map(|_| here)
}

/// Refuses a state that needs something else than what is here.
fn check(needed: &Compatibility, here: &Compatibility) -> Result<(), LaunchError> {
    for (what, needed) in needed {
        let here = here.get(what).map_or("nothing known", String::as_str);
        if needed != here {
            return Err(LaunchError::Incompatible {
                what: what.clone(),
                needed: needed.clone(),
                here: here.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let needed = Compatibility::from([("VMM".to_owned(), "QEMU 7.2.22".to_owned())]);
        let here = Compatibility::from([("VMM".to_owned(), "QEMU 9.0".to_owned())]);
        check(&needed, &needed).unwrap();
        let text = check(&needed, &here).unwrap_err().to_string();
        assert!(text.contains("QEMU 7.2.22") && text.contains("QEMU 9.0"), "{text}");
        assert!(check(&needed, &Compatibility::new()).is_err());
        let machine = |name: &str| Compatibility::from([(MACHINE.to_owned(), name.to_owned())]);
        let text = discovery(&machine("q35")).unwrap_err().to_string();
        assert!(text.contains("q35") && text.contains("acpi=off"), "{text}");
        // A state that does not tell its machine type fits none: its devices could be anywhere.
        assert!(discovery(&Compatibility::new()).is_err());
    }
}
