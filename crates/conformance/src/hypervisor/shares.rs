//! Folders of the host in a machine: offered or refused, never forgotten.

use camino::Utf8PathBuf;
use microvm_ports::hypervisor::{Device, LaunchError, MachineShare};

use super::{Launched, Scene};
use crate::Must;

pub(super) async fn folders(scene: &Scene<'_>) {
    let hypervisor = scene.harness.hypervisor();
    let mut spec = scene.spec().await;
    let share = |tag: &str, source: Utf8PathBuf| {
        Device::Share(MachineShare { source, tag: tag.to_owned(), read_only: true })
    };
    // A folder that surely is there.
    let folder = spec.directory.canonicalize_utf8().must("finding the machine's own directory");
    spec.devices.push(share("share0", folder.clone()));
    if scene.abilities().await.sharing.is_none() {
        match hypervisor.launch(&spec).await {
            Err(LaunchError::Spec(_)) => return,
            Err(error) => panic!("wrong error: {error}"),
            Ok(_) => panic!("a machine was launched without the folder it was to have"),
        }
    }
    let machine = hypervisor.launch(&spec).await.must("launching with a folder");
    let launched = Launched { spec: spec.clone(), machine };
    scene.end(&launched).await;
    spec.devices.push(share("share1", folder.join("nowhere")));
    match hypervisor.launch(&spec).await {
        Err(LaunchError::Share(detail)) => assert!(detail.contains("nowhere"), "{detail}"),
        Err(error) => panic!("wrong error: {error}"),
        Ok(_) => panic!("a machine was launched with a folder that is not there"),
    }
    assert_eq!(scene.harness.processes(&spec).await, 0, "a process is left");
}
