//! Identity of a guest: what its agent is told about the VM.

use std::collections::BTreeMap;

use microvm_ports::guest::{GuestVolume, Identity};
use microvm_ports::storage::ImageConfig;
use microvm_types::Phase;
use microvm_types::vm::{Origin, VmRecord};
use microvm_types::volume::VolumeMount;

use super::shares;
use super::stages::Start;
use crate::ports::Ports;

/// Identity for the guest of a machine that begins.
pub(crate) fn first_identity(
    ports: &Ports,
    record: &VmRecord,
    config: &ImageConfig,
    start: &Start,
) -> Identity {
    // Everything else goes on with memory in which these things were done.
    let boots = matches!(start, Start::Boot(_));
    // Run at every boot, and in a new child of a golden snapshot, which was booted without them. Everything else goes on
    // from a state in which they have been run: forks, restored VMs, and a VM that is put back on its own snapshot.
    let new_from_golden = matches!(record.origin, Origin::Golden { .. }) && record.phase() == Phase::Creating;
    let start_commands =
        if boots || new_from_golden { record.template.start_commands.clone() } else { Vec::new() };
    let mut identity = identity(ports, record, config, start_commands);
    if boots {
        identity.shares = shares::for_guest(&record.template.shares);
        identity.volumes = volumes_for_guest(&record.template.volumes);
    }
    identity
}

/// Identity of a guest. `start_commands` only after a boot; whoever boots adds the shares.
pub(crate) fn identity(
    ports: &Ports,
    record: &VmRecord,
    config: &ImageConfig,
    start_commands: Vec<String>,
) -> Identity {
    // Forks share their random state until the agent mixes this in: two children must never draw the same key.
    let mut entropy = [0; 32];
    ports.clock.fill_random(&mut entropy);
    let environment = environment(&config.environment, &record.template.environment);
    Identity {
        host_name: record.name.to_host_name(),
        machine_id: format!("{:032x}", record.id.as_u128()),
        entropy,
        environment: environment.into_iter().collect(),
        start_commands,
        shares: Vec::new(),
        volumes: Vec::new(),
        user: config.user.clone(),
        working_directory: config.working_directory.clone(),
    }
}

/// Volumes as a guest mounts them.
fn volumes_for_guest(volumes: &[VolumeMount]) -> Vec<GuestVolume> {
    let all = volumes.iter().enumerate().map(|(index, mount)| GuestVolume {
        serial: VolumeMount::serial(index),
        target: mount.target.clone(),
        read_only: mount.read_only,
    });
    all.collect()
}

/// Variables of every command. What nobody has said comes first, then the image's, then the template's with what the request
/// put into it. The agent adds a PATH where there is none.
fn environment(
    image: &BTreeMap<String, String>,
    template: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]);
    environment.extend(image.clone());
    environment.extend(template.clone());
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_wins_over_what_nobody_said_and_the_template_over_the_image() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let none = BTreeMap::new();
        let image = map(&[("PATH", "/opt/x/bin:/bin"), ("LANG", "de_DE.UTF-8"), ("A", "image")]);
        assert_eq!(environment(&image, &none), image);
        assert_eq!(environment(&none, &none), map(&[("LANG", "C.UTF-8")]));
        assert_eq!(environment(&image, &map(&[("A", "template")]))["A"], "template");
    }
}
