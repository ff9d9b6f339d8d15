//! The live branch on real machines: parent and child go on with their own state, memory and disk of one moment.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, LIMIT, run, save_to};
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_driver_qemu::{Qemu, QemuConfig};
use microvm_ports::StateParts;
use microvm_ports::branch::{Branch, DiskChange, IncomingState};
use microvm_ports::guest::{Guest, GuestConnector, Identity};
use microvm_ports::hypervisor::{Machine, MachineDisk, MachineSpec, MachineStart};
use microvm_ports::{Hypervisor as _, LaunchError, SnapshotStore as _, VmStorage as _};
use microvm_types::VmId;

fn id(number: u64) -> VmId {
    VmId::from_parts(number, number)
}

async fn connect(machine: &dyn Machine, epoch: u64, name: &str) -> Arc<dyn Guest> {
    let identity = Identity {
        host_name: name.to_owned(),
        machine_id: format!("{epoch:032x}"),
        entropy: [u8::try_from(epoch).unwrap(); 32],
        ..Identity::default()
    };
    let connector = SocketGuestConnector::new(GuestConfig::default());
    connector.connect(&machine.endpoint(), epoch, &identity, LIMIT).await.unwrap()
}

/// True if the kernel says that a machine's process may have huge pages.
fn may_have_huge_pages(bench: &Bench, id: &VmId) -> bool {
    let [process] = *bench.processes_of(id) else { panic!("it has one process") };
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    status.lines().any(|line| line == "THP_enabled:\t1")
}

/// Branches a machine; its scratch disk goes on writing to a new overlay in the directory of `overlay_of`.
async fn branch(bench: &Bench, machine: &dyn Machine, overlay_of: u64) -> (Branch, DiskChange) {
    let overlay = scratch(&bench.make_spec(&id(overlay_of)).await).clone();
    let overlay = DiskChange { serial: "scratch".to_owned(), path: overlay.path };
    let request = save_to(vec![overlay.clone()], false);
    let branch = machine.brancher().unwrap().branch(request).await.unwrap();
    eprintln!("{:?}: {} KiB changed", branch.times, branch.memory.page_bytes() >> 10);
    (branch, overlay)
}

/// The scratch disk of a machine.
fn scratch(spec: &MachineSpec) -> &MachineDisk {
    spec.disks().find(|disk| disk.serial == "scratch").unwrap()
}

/// A child of `parent` at `branch`: its disk lies over what the parent wrote until then.
async fn child_spec(
    bench: &Bench,
    number: u64,
    parent: &MachineSpec,
    branch: &Branch,
    machine: &dyn Machine,
) -> MachineSpec {
    let mut spec = bench.make_spec(&id(number)).await;
    let below = scratch(parent);
    let backing = std::iter::once(below.path.clone()).chain(below.backing.clone()).collect();
    let disk = MachineDisk { backing, ..scratch(&spec).clone() };
    assert!(spec.replace_disk(&disk));
    // Others may read it; its own VMM opens it for writing at later branches, too.
    std::fs::set_permissions(&below.path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    spec.start = MachineStart::Incoming(IncomingState {
        parts: branch.parts.clone(),
        memory: branch.memory.clone(),
        compatibility: machine.brancher().unwrap().compatibility().clone(),
    });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_branched_and_its_child_again() {
    branched_and_its_child_again(true).await;
}

/// As on kernels that cannot note what a guest writes.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_all_memory_copied_in_the_pause() {
    branched_and_its_child_again(false).await;
}

async fn branched_and_its_child_again(write_tracking: bool) {
    // Ids name control groups, and another test may run at the same time.
    let first_id = if write_tracking { 1 } else { 41 };
    let Some(bench) = Bench::open_with("built", write_tracking).await else { return };
    let offered = bench.driver.probe().await.unwrap().copying_ahead;
    assert!(write_tracking || !offered.is_on(), "{offered}");
    let spec = bench.make_spec(&id(first_id)).await;
    let parent = bench.driver.launch(&spec).await.unwrap();
    let [process] = *bench.processes_of(&spec.id) else { panic!("it has one process") };
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let noting = links.filter(|link| link.as_os_str() == "anon_inode:[userfaultfd]").count();
    assert_eq!(noting, usize::from(offered.is_on()));
    parent.resume().await.unwrap();
    let guest = connect(&*parent, 1, "parent").await;
    run(&*guest, "echo before > /root/file; mkfifo /tmp/p; (while read x < /tmp/p; do echo $x-$$ >> /root/log; done) & ").await;
    let (first, overlay) = branch(&bench, &*parent, first_id + 1).await;
    assert_eq!(first.times.ahead > Duration::ZERO, offered.is_on(), "{:?}", first.times);
    assert_eq!(run(&*guest, "echo parent > /root/mine; cat /root/file").await, "before");

    let began = Instant::now();
    let spec1 = child_spec(&bench, first_id + 2, &spec, &first, &*parent).await;
    let child = bench.driver.launch(&spec1).await.unwrap();
    let launched = began.elapsed();
    // One that boots fills huge pages with what it translates; a forked one does not.
    assert_eq!([&spec, &spec1].map(|spec| may_have_huge_pages(&bench, &spec.id)), [true, false]);
    child.resume().await.unwrap();
    let child_guest = connect(&*child, 2, "child").await;
    let connected = began.elapsed();
    assert_eq!(
        run(&*child_guest, "cat /root/file; ls /root/mine 2>&1; hostname").await,
        "before\nls: cannot access '/root/mine': No such file or directory\nchild"
    );
    eprintln!("launched {launched:?}, connected {connected:?}, answered {:?}", began.elapsed());
    // The background process of the parent goes on in both, each on its own disk.
    for (guest, word) in [(&guest, "in-parent"), (&child_guest, "in-child")] {
        let log = run(
            &**guest,
            &format!("echo {word} > /tmp/p; until grep -q {word} /root/log; do :; done; cat /root/log"),
        )
        .await;
        assert!(log.starts_with(word) && !log.contains('\n'), "{log}");
    }
    // A child is branched like any other machine, by the next server too.
    let record = child.record();
    drop(child);
    let next_server = Qemu::new(QemuConfig::new(bench.launcher.clone()));
    let child = next_server.adopt(&spec1.id, &spec1.directory, &record).await.unwrap();
    run(&*child_guest, "echo of the child > /root/mine").await;
    let (second, _) = branch(&bench, &*child, first_id + 3).await;
    assert_eq!(second.times.ahead > Duration::ZERO, offered.is_on(), "{:?}", second.times);
    let spec2 = child_spec(&bench, first_id + 4, &spec1, &second, &*child).await;
    let grandchild = bench.driver.launch(&spec2).await.unwrap();
    grandchild.resume().await.unwrap();
    let grandchild_guest = connect(&*grandchild, 3, "grandchild").await;
    assert_eq!(
        run(&*grandchild_guest, "cat /root/file /root/mine; wc -l < /root/log").await,
        "before\nof the child\n1"
    );
    // The parent wrote to its new overlay, nothing below it.
    assert!(run(&*guest, "sync; cat /root/mine").await == "parent");
    assert!(overlay.path.metadata().unwrap().len() > 0);
    // What is switched off is off for machines that were launched before, too.
    drop(child);
    let config = QemuConfig { write_tracking: false, ..QemuConfig::new(bench.launcher.clone()) };
    let child = Qemu::new(config).adopt(&spec1.id, &spec1.directory, &record).await.unwrap();
    let (third, _) = branch(&bench, &*child, first_id + 5).await;
    assert_eq!(third.times.ahead, Duration::ZERO);
    for machine in [parent, child, grandchild] {
        machine.kill(LIMIT).await.unwrap();
    }
    bench.expect_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_waited_becomes_the_child_unless_it_was_killed() {
    let Some(bench) = Bench::open("built").await else { return };
    let spec = bench.make_spec(&id(21)).await;
    let parent = bench.driver.launch(&spec).await.unwrap();
    parent.resume().await.unwrap();
    let guest = connect(&*parent, 1, "parent").await;
    run(&*guest, "echo before > /root/file").await;
    let (state, _) = branch(&bench, &*parent, 22).await;
    for (number, killed) in [(23, false), (24, true)] {
        let spec = child_spec(&bench, number, &spec, &state, &*parent).await;
        bench.driver.standby().unwrap().prepare(&spec).await.unwrap();
        let waited = bench.processes_of(&spec.id);
        assert_eq!(waited.len(), 1);
        if killed {
            let kill = std::process::Command::new("kill").args(["-9", &waited[0].to_string()]).status();
            assert!(kill.unwrap().success());
        }
        let child = bench.driver.launch(&spec).await.unwrap();
        assert_eq!(bench.processes_of(&spec.id) == waited, !killed);
        child.resume().await.unwrap();
        let guest = connect(&*child, number, "child").await;
        assert_eq!(run(&*guest, "cat /root/file; echo child > /root/file; sync").await, "before");
        child.kill(LIMIT).await.unwrap();
    }
    parent.kill(LIMIT).await.unwrap();
    bench.expect_nothing_left();
}

/// The supervisor answers opens for writing; who is branched again and again does not need it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_its_supervisor_is_branched_like_any_other() {
    let Some(bench) = Bench::open("built").await else { return };
    let spec = bench.make_spec(&id(51)).await;
    let parent = bench.driver.launch(&spec).await.unwrap();
    parent.resume().await.unwrap();
    let guest = connect(&*parent, 1, "parent").await;
    let record = std::fs::read(spec.directory.join("process.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let supervisor = record["supervisor"]["pid"].as_i64().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &supervisor]).status().unwrap().success());
    for round in 1..=3 {
        let word = format!("round {round}");
        run(&*guest, &format!("echo {word} > /root/file; sync")).await;
        let (state, overlay) = branch(&bench, &*parent, 51 + 10 * round).await;
        assert!(overlay.path.exists() && state.memory.page_bytes() > 0);
        assert_eq!(run(&*guest, "cat /root/file").await, word, "it goes on");
    }
    parent.kill(LIMIT).await.unwrap();
    // Nobody was left to remove its control groups.
    bench.driver.sweep(&spec.id, &spec.directory, None).await.unwrap();
    bench.expect_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_starts_again_over_an_overlay_of_a_branch_that_was_never_made() {
    let Some(bench) = Bench::open("built").await else { return };
    let mut spec = bench.make_spec(&id(31)).await;
    for (epoch, script) in [(1, "echo kept > /root/file; sync"), (2, "true")] {
        let machine = bench.driver.launch(&spec).await.unwrap();
        machine.resume().await.unwrap();
        let guest = connect(&*machine, epoch, "dev").await;
        run(&*guest, script).await;
        if epoch == 2 {
            assert_eq!(run(&*guest, "cat /root/file").await, "kept");
        }
        machine.kill(LIMIT).await.unwrap();
        bench.storage.prepare_overlays(&spec.id, &[]).await.unwrap();
        assert!(spec.replace_disk(&bench.storage.vm_files(&spec.id).await.unwrap().scratch));
        assert!(scratch(&spec).backing[0].starts_with(&spec.directory));
    }
    bench.expect_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_another_build_is_refused() {
    let Some(bench) = Bench::open("built").await else { return };
    let spec = bench.make_spec(&id(11)).await;
    let parent = bench.driver.launch(&spec).await.unwrap();
    let (state, _) = branch(&bench, &*parent, 12).await;
    let mut child = child_spec(&bench, 13, &spec, &state, &*parent).await;
    let needs = parent.brancher().unwrap().compatibility().clone();
    assert!(["VMM", "processor", "machine"].iter().all(|what| needs.contains_key(*what)), "{needs:?}");
    for what in needs.keys() {
        if let MachineStart::Incoming(incoming) = &mut child.start {
            incoming.compatibility.clone_from(&needs);
            incoming.compatibility.insert(what.clone(), "another one".to_owned());
        }
        let refused = bench.driver.launch(&child).await.err().unwrap();
        let LaunchError::Incompatible { what: named, needed, .. } = &refused else { panic!("{refused}") };
        assert_eq!((named, needed.as_str()), (what, "another one"));
    }
    // A state of another size of memory.
    if let MachineStart::Incoming(incoming) = &mut child.start {
        incoming.compatibility.clone_from(&needs);
    }
    for memory_mib in [128, 512] {
        let mut other = child.clone();
        other.memory_mib = memory_mib;
        let refused = bench.driver.launch(&other).await.err().unwrap();
        assert!(matches!(refused, LaunchError::Spec(_)), "{memory_mib} MiB: {refused}");
    }
    // Garbage instead of a device state ends in an error, not in a machine.
    if let MachineStart::Incoming(incoming) = &mut child.start {
        incoming.parts = StateParts::single(vec![7; 4096].into());
    }
    let refused = bench.driver.launch(&child).await.err().unwrap();
    assert!(matches!(refused, LaunchError::BadState(_)), "{refused}");
    parent.kill(LIMIT).await.unwrap();
    bench.expect_nothing_left();
}
