//! Facts that earlier versions of this program read, and this one does not.

use microvm_ports::snapshot::StateDescription;
use microvm_types::kernel::DeviceDiscovery;
use serde::{Serialize, Serializer};

/// A description as earlier versions read it.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    description: &'a StateDescription,
    #[serde(skip_serializing_if = "Option::is_none")]
    discovery: Option<DeviceDiscovery>,
}

/// Source from which the kernel in a state learnt of its devices. Earlier versions load states of QEMU only, and of those the
/// machine type tells it; `None` for states of others.
fn discovery(description: &StateDescription) -> Option<DeviceDiscovery> {
    let need = |name: &str| description.compatibility.get(name).map(String::as_str);
    need("VMM").filter(|vmm| vmm.starts_with("QEMU "))?;
    let by_command_line = need("machine")?.split(',').any(|option| option == "acpi=off");
    Some(if by_command_line { DeviceDiscovery::CommandLine } else { DeviceDiscovery::Acpi })
}

/// Writes a description with `discovery`, without which a server before a rollback, and older hosts, cannot read it.
pub(crate) fn with_discovery<S: Serializer>(
    description: &StateDescription,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    Told { description, discovery: discovery(description) }.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use microvm_ports::branch::Compatibility;
    use microvm_ports::capabilities::MemoryShape;
    use serde_json::{Value, json};

    use super::*;

    fn written(needs: &[(&str, &str)]) -> Value {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let description = StateDescription {
            memory_mib: 64,
            disk_mib: 64,
            memory: MemoryShape::PagesOverBase,
            compatibility: needs.iter().map(owned).collect::<Compatibility>(),
            record: Value::Null,
        };
        let written = with_discovery(&description, serde_json::value::Serializer).unwrap();
        assert_eq!(serde_json::from_value::<StateDescription>(written.clone()).unwrap(), description);
        written
    }

    #[test]
    fn states_of_qemu_tell_how_their_kernel_found_its_devices() {
        for (machine, told) in
            [("microvm,acpi=off,rtc=on", json!("command_line")), ("microvm,acpi=on,rtc=on", json!("acpi"))]
        {
            let written = written(&[("VMM", "QEMU 7.2.22"), ("machine", machine)]);
            assert_eq!((&written["discovery"], &written["memory_mib"]), (&told, &json!(64)));
        }
        assert_eq!(written(&[("VMM", "Firecracker 1.9")]).get("discovery"), None);
        assert_eq!(written(&[("VMM", "QEMU 7.2.22")]).get("discovery"), None);
    }
}
