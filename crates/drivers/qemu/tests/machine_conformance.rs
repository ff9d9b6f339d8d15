//! The driver on real machines: the hypervisor suite of `ports`, and the cage around a running VMM.
//!
//! Needs a root with an image and kernels (`MICROVM_TEST_ROOT`), the guest agent (`MICROVM_TEST_AGENT`) and the program
//! that VMMs are started through (`MICROVM_TEST_PROGRAM`); `cargo xtask test` provides all of them.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use common::Bench;
use microvm_conformance::hypervisor::{self, HypervisorHarness};
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_driver_qemu::{Qemu, QemuConfig};
use microvm_ports::guest::GuestConnector;
use microvm_ports::hypervisor::{Hypervisor, MachineSpec};
use microvm_ports::{SnapshotStore, VmStorage};
use microvm_types::VmId;

#[async_trait]
impl HypervisorHarness for Bench {
    fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.driver) as _
    }

    fn restarted(&self) -> Arc<dyn Hypervisor> {
        Arc::new(Qemu::new(QemuConfig::new(self.launcher.clone())))
    }

    fn connector(&self) -> Arc<dyn GuestConnector> {
        Arc::new(SocketGuestConnector::new(GuestConfig::default()))
    }

    async fn spec(&self, id: &VmId) -> MachineSpec {
        self.make_spec(id).await
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.storage.clone())
    }

    fn storage(&self) -> Arc<dyn VmStorage> {
        Arc::new(self.storage.clone())
    }

    fn disk_mib(&self) -> u32 {
        common::DISK_MIB
    }

    async fn processes(&self, spec: &MachineSpec) -> usize {
        self.processes_of(&spec.id).len()
    }

    fn panic_command(&self) -> Option<Vec<String>> {
        // The built kernel has no magic keys; how a panic is told does not depend on the kernel.
        let command = ["sh", "-c", "echo c > /proc/sysrq-trigger"].map(str::to_owned).to_vec();
        (self.kernel == "distribution").then_some(command)
    }

    async fn kill_vmm(&self, spec: &MachineSpec) {
        let pids = self.processes_of(&spec.id);
        assert_eq!(pids.len(), 1, "one VMM was expected: {pids:?}");
        let killed = std::process::Command::new("kill").args(["-9", &pids[0].to_string()]).status().unwrap();
        assert!(killed.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_does_what_every_hypervisor_must() {
    let Some(bench) = Bench::open("distribution").await else { return };
    hypervisor::run(&bench).await;
    bench.expect_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_does_it_with_the_built_kernel_too() {
    let Some(bench) = Bench::open("built").await else { return };
    hypervisor::run(&bench).await;
    bench.expect_nothing_left();
}

/// The fields of `/proc/<pid>/status` that tell of rights.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn expect_no_rights(pid: i32) {
    let status = status(pid);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2", "QEMU's own filter and ours");
    let root = we_are_root();
    for ids in ["Uid", "Gid"] {
        let first: u32 = status[ids].split_whitespace().next().unwrap().parse().unwrap();
        assert!(!root || first >= 0x6000_0000, "{ids} is {first}");
        assert!(status[ids].split_whitespace().all(|id| id == first.to_string()), "{ids}: {}", status[ids]);
    }
    assert!(!root || status["Groups"].split_whitespace().all(|group| group != "0"), "{}", status["Groups"]);
}

fn we_are_root() -> bool {
    status(i32::try_from(std::process::id()).unwrap())["Uid"].starts_with("0\t")
}

fn expect_own_namespaces(pid: i32) {
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of("self"), of(&pid.to_string()), "it shares our {namespace} namespace");
    }
}

fn expect_small_root(pid: i32, bench: &Bench) {
    let inside = |path: &str| std::path::PathBuf::from(format!("/proc/{pid}/root{path}"));
    for hidden in
        ["/etc/passwd", "/etc/shadow", "/root", "/home", "/proc/1", "/sys/kernel", "/var/lib", "/bin/sh"]
    {
        assert!(!inside(hidden).exists(), "{hidden} is seen in the cage");
    }
    assert!(!inside(bench.root().as_str()).exists(), "the root directory with all VMs is seen in the cage");
    let devices: Vec<String> = fs::read_dir(inside("/dev"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let fine = ["null", "urandom", "kvm"];
    assert!(devices.iter().all(|device| fine.contains(&device.as_str())), "{devices:?}");
}

/// Every descriptor of a file of ours, with whether it can be written.
fn open_files(pid: i32) -> Vec<(String, bool)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let number = entry.file_name().into_string().unwrap();
        let information = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = information.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        // The two lowest bits are the access mode (open(2)): 0 reads only.
        let writable = i64::from_str_radix(flags, 8).unwrap() & 3 != 0;
        files.push((target.to_string_lossy().into_owned(), writable));
    }
    files
}

/// The modes of all mappings of a file.
fn mappings(pid: i32, file: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines()
        .filter(|line| line.ends_with(file))
        .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
        .collect()
}

fn expect_shared_files_unwritable(pid: i32, base: &str) {
    let files = open_files(pid);
    // Three standard streams, what QEMU makes for itself, and the files of the machine: nothing of ours came along.
    let pipes = files.iter().filter(|(name, _)| name.starts_with("pipe:")).count();
    assert_eq!(pipes, 2, "{files:?}");
    for (name, writable) in &files {
        let ours = [base, "/kernel", "/initramfs", "/disk-0", "/disk-1-below-0"];
        if ours.iter().any(|end| name.ends_with(end)) {
            assert!(!writable, "{name} is open for writing");
        }
    }
    assert!(files.iter().any(|(name, writable)| *writable && name.ends_with("/scratch.qcow2")), "{files:?}");
    let memory = mappings(pid, base);
    assert!(!memory.is_empty(), "the memory is not mapped from its base");
    assert!(memory.iter().all(|mode| mode.ends_with('p')), "a mapping of the base is shared: {memory:?}");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (target, options) = (fields[4], fields[5]);
        let writable = options.split(',').any(|option| option == "rw");
        assert!(!writable || target.starts_with("/dev/"), "{target} can be written: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_can_touch_next_to_nothing() {
    let Some(bench) = Bench::open("distribution").await else { return };
    let spec = bench.make_spec(&VmId::from_parts(1_700_000_000_000, 77)).await;
    let before = fs::read(spec.memory_base().unwrap()).unwrap();
    let machine = bench.driver.launch(&spec).await.unwrap();
    machine.resume().await.unwrap();
    let guest = bench
        .connector()
        .connect(&machine.endpoint(), 1, &Default::default(), std::time::Duration::from_secs(60))
        .await
        .unwrap();
    guest.ping().await.unwrap();
    let pid = bench.processes_of(&spec.id)[0];
    expect_no_rights(pid);
    expect_own_namespaces(pid);
    expect_small_root(pid, &bench);
    expect_shared_files_unwritable(pid, spec.memory_base().unwrap().as_str());
    drop(guest);
    machine.kill(std::time::Duration::from_secs(20)).await.unwrap();
    assert!(fs::read(spec.memory_base().unwrap()).unwrap() == before, "the base of the memory was changed");
    bench.expect_nothing_left();
}
