//! Limits of one VM and of all VMs together, and the settings of the operator that change them.

use camino::Utf8Path;
use microvm_core::HostLimits;

use crate::variables;

const VCPUS_PER_VM: &str = "MICROVM_VCPUS_PER_VM";
const MEMORY_PER_VM: &str = "MICROVM_MEMORY_PER_VM";
const DISK_PER_VM: &str = "MICROVM_DISK_PER_VM";
const VM_LIMIT: &str = "MICROVM_VM_LIMIT";
const MEMORY_LIMIT: &str = "MICROVM_MEMORY_LIMIT";

/// The setting that raises the limit of a field, as remedies name it.
pub(crate) fn setting(field: Option<&str>) -> Option<&'static str> {
    match field? {
        "vcpus" => Some(VCPUS_PER_VM),
        "memory_mib" | "memory_max_mib" => Some(MEMORY_PER_VM),
        "disk_mib" | "size_mib" => Some(DISK_PER_VM),
        // Of pools: as many VMs as there may be.
        "vms" | "max" => Some(VM_LIMIT),
        "total_memory_mib" => Some(MEMORY_LIMIT),
        other => crate::bounds::setting(other),
    }
}

/// The defaults, lowered to what this host has, or the operator's.
pub(crate) fn host_limits() -> anyhow::Result<HostLimits> {
    let mut limits = HostLimits::default();
    if let Ok(cores) = std::thread::available_parallelism() {
        limits.max_vcpus = limits.max_vcpus.min(u32::try_from(cores.get()).unwrap_or(u32::MAX));
    }
    if let Some(total_mib) = memory_total_mib(Utf8Path::new("/proc/meminfo")) {
        limits.max_memory_mib = limits.max_memory_mib.min(total_mib);
    }
    // Said by the operator: as it is, also above what the host has.
    if let Some(text) = variables::read(VCPUS_PER_VM)? {
        limits.max_vcpus = vcpus(&text)?;
    }
    if let Some(text) = variables::read(MEMORY_PER_VM)? {
        limits.max_memory_mib = mib_per_vm(MEMORY_PER_VM, &text)?;
    }
    if let Some(text) = variables::read(DISK_PER_VM)? {
        limits.max_disk_mib = mib_per_vm(DISK_PER_VM, &text)?;
    }
    if let Some(text) = variables::read(VM_LIMIT)? {
        limits.max_vms = vm_limit(&text)?;
    }
    if let Some(text) = variables::read(MEMORY_LIMIT)? {
        limits.total_memory_mib = memory_limit(&text)?;
    }
    Ok(limits)
}

/// Processors that one VM may have.
fn vcpus(text: &str) -> anyhow::Result<u32> {
    match text.parse() {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => anyhow::bail!("{VCPUS_PER_VM} is `{text}`: it must be a number of processors, at least 1"),
    }
}

/// Memory or disk in MiB that one VM may have.
fn mib_per_vm(setting: &str, text: &str) -> anyhow::Result<u32> {
    let size: microvm_types::ByteSize = text.parse().map_err(|error| {
        anyhow::anyhow!("{setting} is `{text}` ({error}): it must be a size such as 8GiB")
    })?;
    match u32::try_from(size.0 >> 20) {
        Ok(0) => anyhow::bail!("{setting} is `{text}`: less than 1MiB lets no VM exist"),
        Ok(mib) => Ok(mib),
        Err(_) => anyhow::bail!("{setting} is `{text}`: it must be less than 4096TiB"),
    }
}

/// VMs that may exist together.
fn vm_limit(text: &str) -> anyhow::Result<usize> {
    match text.parse() {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => anyhow::bail!("MICROVM_VM_LIMIT is `{text}`: it must be a number of VMs, at least 1"),
    }
}

/// Memory in MiB that all VMs together may be given.
fn memory_limit(text: &str) -> anyhow::Result<Option<u64>> {
    let size: microvm_types::ByteSize = text.parse().map_err(|error| {
        anyhow::anyhow!(
            "MICROVM_MEMORY_LIMIT is `{text}` ({error}): it must be a size such as 16GiB, or 0 for none"
        )
    })?;
    match size.0 {
        0 => Ok(None),
        bytes if bytes < 1 << 20 => {
            anyhow::bail!("MICROVM_MEMORY_LIMIT is `{text}`: less than 1MiB lets no VM exist; 0 is no limit")
        }
        bytes => Ok(Some(bytes >> 20)),
    }
}

fn memory_total_mib(meminfo: &Utf8Path) -> Option<u32> {
    let text = std::fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    u32::try_from(kib >> 10).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_all_vms_together_are_numbers_and_sizes() {
        assert_eq!(vm_limit("12").unwrap(), 12);
        for wrong in ["0", "-1", "many", ""] {
            assert!(vm_limit(wrong).unwrap_err().to_string().contains("MICROVM_VM_LIMIT"), "{wrong}");
        }
        assert_eq!(memory_limit("16GiB").unwrap(), Some(16_384));
        assert_eq!(memory_limit("0").unwrap(), None);
        for wrong in ["1KiB", "much", ""] {
            assert!(memory_limit(wrong).unwrap_err().to_string().contains("MICROVM_MEMORY_LIMIT"), "{wrong}");
        }
    }

    #[test]
    fn limits_of_one_vm_are_numbers_and_sizes() {
        assert_eq!(vcpus("8").unwrap(), 8);
        for wrong in ["0", "-1", "many", ""] {
            assert!(vcpus(wrong).unwrap_err().to_string().contains(VCPUS_PER_VM), "{wrong}");
        }
        assert_eq!(mib_per_vm(MEMORY_PER_VM, "8GiB").unwrap(), 8_192);
        for wrong in ["1KiB", "much", "", "0", "9999999TiB"] {
            assert!(mib_per_vm(DISK_PER_VM, wrong).unwrap_err().to_string().contains(DISK_PER_VM), "{wrong}");
        }
    }

    #[test]
    fn every_limit_of_a_request_names_its_setting() {
        for field in [
            "vcpus",
            "memory_mib",
            "disk_mib",
            "size_mib",
            "vms",
            "max",
            "total_memory_mib",
            "timeout",
            "timeout_ms",
            "command",
            "upload",
        ] {
            assert!(setting(Some(field)).is_some_and(|name| name.starts_with("MICROVM_")), "{field}");
        }
        assert_eq!(setting(Some("shares")).or(setting(None)), None);
    }
}
