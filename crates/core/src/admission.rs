//! Admission: checks of a request before anything is touched.

use std::collections::BTreeMap;

use microvm_ports::hypervisor::Abilities;
use microvm_types::share::{Share, check_targets};
use microvm_types::template::{HookAction, NetworkMode, Template};
use microvm_types::volume::VolumeMount;

use crate::error::{Bound, ServiceError, unit};
use crate::settings::HostLimits;
use crate::state::GOLDEN_LABEL;

/// Smallest memory a guest boots with, in MiB. (Measured: the distribution's kernel with our agent needs 96 MiB.)
const MIN_MEMORY_MIB: u32 = 128;
/// Smallest scratch disk in MiB: below that ext4 has no room for its journal.
pub(crate) const MIN_DISK_MIB: u32 = 64;
/// Longest disk serial number that virtio-blk carries, in bytes (virtio 1.1, 5.2.6: VIRTIO_BLK_T_GET_ID).
const DISK_SERIAL_MAX: usize = 20;
/// With less a VM does not come up within the usual time limit.
const CPU_PERCENT_LEAST: u32 = 10;
/// Commands to warm up; whoever is first waits for all of them.
const WARM_UP_MAX: usize = 16;
/// Bytes of one of them.
const WARM_UP_LINE_MAX: usize = 4_096;

/// Checks a template with all overrides applied against what can be and what is allowed.
pub(crate) fn check(template: &Template, limits: &HostLimits) -> Result<(), ServiceError> {
    let number = |field, asked, least, most| number(field, asked, least, (most, Bound::Operator));
    number("vcpus", template.vcpus, 1, limits.max_vcpus)?;
    number("memory_mib", template.memory_mib, MIN_MEMORY_MIB, limits.max_memory_mib)?;
    if let Some(most) = template.memory_max_mib {
        number("memory_max_mib", most, MIN_MEMORY_MIB, limits.max_memory_mib)?;
        let times = Template::MEMORY_GROWTH_MOST;
        let growth = template.memory_mib.saturating_mul(times);
        if !(template.memory_mib..=growth).contains(&most) {
            let least = template.memory_mib;
            return Err(invalid(
                "memory_max_mib",
                format!(
                    "{most} MiB is not between `memory_mib`, {least} MiB, and {times} times that, {growth} MiB"
                ),
            ));
        }
    }
    number("disk_mib", template.disk_mib, MIN_DISK_MIB, limits.max_disk_mib)?;
    if template.network != NetworkMode::Isolated {
        return Err(ServiceError::Network(template.network));
    }
    for (name, value) in &template.environment {
        variable(name, value)?;
    }
    for argument in &template.kernel_arguments {
        if argument.is_empty()
            || argument.len() > 256
            || argument.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(invalid(
                "kernel_arguments",
                format!("`{argument}` is not one word of at most 256 characters"),
            ));
        }
    }
    let too_long = |line: &String| line.len() > WARM_UP_LINE_MAX || line.contains('\0');
    if template.warm_up.len() > WARM_UP_MAX || template.warm_up.iter().any(too_long) {
        let reason = format!("at most {WARM_UP_MAX} commands of {WARM_UP_LINE_MAX} bytes, without NUL");
        return Err(invalid("warm_up", reason));
    }
    Share::check_all(&template.shares).map_err(|error| invalid("shares", error.to_string()))?;
    volumes(template)?;
    let mut names = vec!["image", "scratch"];
    for disk in &template.extra_disks {
        let name = disk.name.as_str();
        if name.len() > DISK_SERIAL_MAX || names.contains(&name) {
            return Err(invalid(
                "extra_disks",
                format!("`{name}` is longer than {DISK_SERIAL_MAX} characters or used twice"),
            ));
        }
        if !disk.path.starts_with('/') {
            return Err(invalid("extra_disks", format!("`{}` is not an absolute path", disk.path)));
        }
        names.push(name);
    }
    for hook in &template.hooks {
        if !(1..=600_000).contains(&hook.timeout_ms) {
            return Err(invalid("hooks", "timeout_ms must be 1 to 600000".to_owned()));
        }
        match &hook.action {
            HookAction::Program(command)
                if command.first().is_none_or(|program| !program.starts_with('/')) =>
            {
                return Err(invalid("hooks", "a program needs an absolute path".to_owned()));
            }
            HookAction::Webhook(address) if !address.starts_with("http://") => {
                return Err(invalid("hooks", format!("`{address}` is not an http:// address")));
            }
            HookAction::Program(_) | HookAction::Webhook(_) => {}
        }
    }
    Ok(())
}

/// Refuses the label that the server gives to its own machines: a VM with it would be hidden, or removed as a leftover.
pub(crate) fn check_labels<V>(labels: &BTreeMap<String, V>) -> Result<(), ServiceError> {
    if labels.contains_key(GOLDEN_LABEL) {
        return Err(invalid("labels", format!("`{GOLDEN_LABEL}` is reserved for machines of the server")));
    }
    Ok(())
}

/// Checks a template against the abilities of the hypervisor that is to run its VMs.
pub(crate) fn check_abilities(template: &Template, abilities: &Abilities) -> Result<(), ServiceError> {
    number("vcpus", template.vcpus, 1, (abilities.vcpu_most, Bound::Hypervisor))?;
    if template.memory_at_boot_mib().is_some() && !abilities.balloon {
        let reason = "memory that a VM gets later needs a balloon, which this hypervisor does not offer: leave it out, or choose another hypervisor";
        return Err(invalid("memory_max_mib", reason.to_owned()));
    }
    if let Some(percent) = template.cpu_percent {
        let all = (template.vcpus.saturating_mul(100), Bound::Processors);
        number("cpu_percent", percent, CPU_PERCENT_LEAST, all)?;
        if !abilities.cpu_limit {
            let reason = "this host cannot limit processor time: its control groups have no cpu controller, or the server may not use it";
            return Err(invalid("cpu_percent", reason.to_owned()));
        }
    }
    let (asked, limit) =
        (template.extra_disks.len() + template.shares.len() + template.volumes.len(), abilities.most_devices);
    if asked <= limit {
        return Ok(());
    }
    let field = if template.shares.is_empty() { "extra_disks" } else { "shares and extra_disks" };
    let (asked, limit, bound) = (asked as u64, limit as u64, Bound::Hypervisor);
    Err(ServiceError::OverLimit { field, asked, limit, bound })
}

/// Checks the size of a volume, in MiB.
pub(crate) fn check_volume_size(size_mib: u32, limits: &HostLimits) -> Result<(), ServiceError> {
    number("size_mib", size_mib, MIN_DISK_MIB, (limits.max_disk_mib, Bound::Operator))
}

/// Checks the volumes of a template, and the places of volumes and shared folders against each other.
fn volumes(template: &Template) -> Result<(), ServiceError> {
    let volumes = &template.volumes;
    for (index, mount) in volumes.iter().enumerate() {
        if volumes[..index].iter().any(|other| other.name == mount.name) {
            return Err(invalid("volumes", format!("`{}` is named twice", mount.name)));
        }
        let serial = VolumeMount::serial(index);
        if template.extra_disks.iter().any(|disk| disk.name.as_str() == serial) {
            return Err(invalid("extra_disks", format!("`{serial}` is the name of a volume's disk")));
        }
    }
    let shares = template.shares.iter().map(|share| share.target.as_str());
    let targets: Vec<&str> = shares.chain(volumes.iter().map(|mount| mount.target.as_str())).collect();
    check_targets(&targets).map_err(|error| invalid("volumes", error.to_string()))
}

/// Checks one variable of an environment.
fn variable(name: &str, value: &str) -> Result<(), ServiceError> {
    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
        return Err(invalid(
            "environment",
            format!("`{name}` cannot be a variable: no empty name, no `=`, no NUL"),
        ));
    }
    Ok(())
}

fn number(
    field: &'static str,
    asked: u32,
    least: u32,
    (most, bound): (u32, Bound),
) -> Result<(), ServiceError> {
    if asked < least {
        let unit = unit(field);
        return Err(invalid(field, format!("{asked}{unit} is too little, at least {least}{unit} is needed")));
    }
    if asked > most {
        return Err(ServiceError::OverLimit { field, asked: asked.into(), limit: most.into(), bound });
    }
    Ok(())
}

const fn invalid(field: &'static str, reason: String) -> ServiceError {
    ServiceError::Invalid { field, reason }
}

#[cfg(test)]
mod tests {
    use microvm_types::template::ExtraDisk;

    use super::*;

    fn template() -> Template {
        serde_json::from_str(r#"{"name":"t","image":"i"}"#).unwrap()
    }

    fn refused(change: impl FnOnce(&mut Template)) -> String {
        let mut template = template();
        change(&mut template);
        check(&template, &HostLimits::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_template_is_fine() {
        check(&template(), &HostLimits::default()).unwrap();
    }

    #[test]
    fn every_impossible_wish_is_named() {
        assert!(refused(|t| t.vcpus = 0).starts_with("vcpus: 0 is too little"));
        assert!(refused(|t| t.vcpus = 9).contains("limit of 8"));
        assert!(refused(|t| t.memory_mib = 0).starts_with("memory_mib"));
        assert!(
            refused(|t| t.memory_mib = 9_000)
                .starts_with("memory_mib: 9000 MiB is more than the limit of 8192 MiB")
        );
        assert!(refused(|t| t.memory_mib = 1).contains("1 MiB is too little, at least 128 MiB is needed"));
        assert!(
            refused(|t| t.memory_max_mib = Some(256)).contains("between `memory_mib`, 512 MiB, and 8 times")
        );
        assert!(refused(|t| t.memory_max_mib = Some(4_097)).contains("4096"));
        assert!(refused(|t| t.memory_max_mib = Some(8_193)).contains("limit of 8192 MiB"));
        assert!(refused(|t| t.disk_mib = 1).starts_with("disk_mib"));
        assert!(refused(|t| t.network = NetworkMode::Open).contains("not available"));
        assert!(
            refused(|t| {
                t.environment.insert("A=B".into(), String::new());
            })
            .starts_with("environment")
        );
        assert!(refused(|t| t.kernel_arguments.push("a b".into())).starts_with("kernel_arguments"));
        let disk = |name: &str, path: &str| ExtraDisk {
            name: name.parse().unwrap(),
            path: path.into(),
            read_only: false,
            format: None,
        };
        assert!(refused(|t| t.extra_disks.push(disk("scratch", "/x"))).starts_with("extra_disks"));
        assert!(refused(|t| t.extra_disks.push(disk("data", "x"))).contains("absolute"));
        let share = |target: &str| Share { source: "/x".into(), target: target.into(), read_only: true };
        assert!(refused(|t| t.shares.push(share("/proc/x"))).starts_with("shares: the path in the guest"));
        assert!(refused(|t| t.shares.extend([share("/a"), share("/a")])).contains("separate"));
    }

    #[test]
    fn the_hypervisor_sets_the_limit_of_devices_and_processors() {
        let abilities = Abilities { most_devices: 2, vcpu_most: 4, ..Abilities::NONE };
        let mut template = template();
        check_abilities(&template, &abilities).unwrap();
        template.vcpus = 5;
        let refusal = check_abilities(&template, &abilities).unwrap_err().to_string();
        assert!(refusal.starts_with("vcpus") && refusal.contains("4, the most"), "{refusal}");
        template.vcpus = 4;
        template.cpu_percent = Some(50);
        let refusal = check_abilities(&template, &abilities).unwrap_err().to_string();
        assert!(refusal.contains("cannot limit processor time"), "{refusal}");
        let limits = Abilities { cpu_limit: true, ..abilities };
        check_abilities(&template, &limits).unwrap();
        for wrong in [9, 401] {
            template.cpu_percent = Some(wrong);
            let refusal = check_abilities(&template, &limits).unwrap_err().to_string();
            assert!(refusal.starts_with("cpu_percent"), "{refusal}");
        }
        template.cpu_percent = None;
        let share = |target: &str| Share { source: "/x".into(), target: target.into(), read_only: true };
        template.shares.extend(["/a", "/b", "/c"].map(share));
        let refusal = check_abilities(&template, &abilities).unwrap_err().to_string();
        assert!(
            refusal.starts_with("shares and extra_disks: 3") && refusal.contains("2, the most"),
            "{refusal}"
        );
    }
}
