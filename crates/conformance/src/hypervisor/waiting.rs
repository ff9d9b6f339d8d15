//! VMMs that are started before the state that they load is there.

use microvm_ports::branch::{IncomingState, MemoryPages, StateMemory};
use microvm_ports::hypervisor::{MachineSpec, MachineStart};
use microvm_types::VmId;

use super::branches::{say, skipped};
use super::{Launched, Scene};
use crate::{Must, Suite};

pub(super) async fn run(suite: &mut Suite, scene: &Scene<'_>) {
    if skipped(suite, scene).await {
        return;
    }
    if scene.harness.hypervisor().standby().is_none() {
        suite.skip("standby VMMs", "this hypervisor has none on this host");
        return;
    }
    suite.check("a child is loaded into a VMM that waited", loaded(scene)).await;
    suite.check("a VMM that waited for another machine is not used", of_another_kind(scene)).await;
    suite.check("a VMM that waits is ended and leaves nothing", ended(scene)).await;
}

/// Has a VMM wait for a child of `parent` like `change` makes it.
async fn prepare(
    scene: &Scene<'_>,
    parent: &Launched,
    change: impl FnOnce(&mut MachineSpec),
) -> (VmId, MachineSpec) {
    let Some(brancher) = parent.machine.brancher() else { panic!("the machine has no brancher") };
    let id = scene.id();
    let mut spec = parent.spec.clone();
    (spec.name, spec.id) = ((&id).into(), id.clone());
    let Some(base) = brancher.memory_base() else {
        panic!("no VMM can wait for a machine without a memory base")
    };
    spec.directory = scene.harness.storage().reserve_vm_directory(&id).await.must("reserving a directory");
    spec.start = MachineStart::Incoming(IncomingState {
        parts: microvm_ports::StateParts::default(),
        memory: StateMemory::Pages { base: base.to_owned(), pages: MemoryPages::default() },
        compatibility: brancher.compatibility().clone(),
    });
    change(&mut spec);
    let hypervisor = scene.harness.hypervisor();
    let Some(standby) = hypervisor.standby() else { panic!("it has standby VMMs no more") };
    assert!(standby.fits(&spec), "no VMM can wait for a child");
    standby.prepare(&spec).await.must("preparing a VMM");
    (id, spec)
}

async fn loaded(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let (id, _) = prepare(scene, &parent, |_| {}).await;
    say(&*guest, "echo parent > /root/note").await;
    let source = scene.branch(&parent, &guest).await;
    let spec = scene.child_spec_of(id, &parent, &source).await;
    let (child, child_guest) = scene.go_on(spec, 2).await;
    drop(source);
    assert_eq!(
        say(&*child_guest, "cat /root/note; echo child > /root/note; hostname").await,
        "parent\nchild-2"
    );
    // It is a machine like any other: its disk can be branched again, and goes on after that.
    let source = scene.branch(&child, &child_guest).await;
    let spec = scene.child_spec(&child, &source).await;
    let (grandchild, grandchild_guest) = scene.go_on(spec, 3).await;
    assert_eq!(say(&*child_guest, "echo later > /root/note; cat /root/note").await, "later");
    assert_eq!(say(&*grandchild_guest, "cat /root/note").await, "child");
    assert_eq!(say(&*guest, "cat /root/note").await, "parent");
    for machine in [&grandchild, &child, &parent] {
        scene.end(machine).await;
    }
}

async fn of_another_kind(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let (id, _) = prepare(scene, &parent, |spec| spec.vcpus += 1).await;
    say(&*guest, "echo parent > /root/note").await;
    let source = scene.branch(&parent, &guest).await;
    let spec = scene.child_spec_of(id, &parent, &source).await;
    let (child, child_guest) = scene.go_on(spec, 2).await;
    assert_eq!(say(&*child_guest, "cat /root/note").await, "parent");
    scene.end(&child).await;
    scene.end(&parent).await;
}

async fn ended(scene: &Scene<'_>) {
    let (parent, _guest) = scene.boot().await;
    let (id, spec) = prepare(scene, &parent, |_| {}).await;
    // A machine that boots needs no state that could be waited for.
    let boots = scene.spec().await;
    if let Some(standby) = scene.harness.hypervisor().standby() {
        assert!(!standby.fits(&boots), "a VMM could wait for a machine that boots");
        standby.prepare(&boots).await.must_fail("preparing a VMM for a boot");
        assert_eq!(scene.harness.processes(&boots).await, 0, "a refused VMM is left");
    }
    scene.end(&parent).await;
    let hypervisor = scene.harness.hypervisor();
    // The next server knows nothing of it but its directory.
    scene.harness.restarted().sweep(&id, &spec.directory, None).await.must("sweeping by the next server");
    hypervisor.sweep(&id, &spec.directory, None).await.must("sweeping");
    scene.harness.storage().remove_vm_files(&id).await.must("removing the directory");
    assert!(!spec.directory.exists(), "its directory is left");
}
