//! All memory of a child is that of its source, byte by byte, on every way from one to the other.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use common::{Bench, DISK_MIB, LIMIT, run, save_to};
use microvm_driver_guest::{GuestConfig, SocketGuestConnector};
use microvm_ports::branch::{IncomingState, PAGE_SIZE};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::guest::{Guest, GuestConnector, Identity};
use microvm_ports::hypervisor::{Machine, MachineSpec, MachineStart};
use microvm_ports::snapshot::{BranchFiles, BranchSource, ImportLimits, StateDescription};
use microvm_ports::{Hypervisor as _, Progress, SnapshotStore as _, VmStorage as _};
use microvm_types::{SnapshotId, VmId};

/// Memory of each machine (as [`Bench::make_spec`] gives it), in MiB.
const MEMORY_MIB: u32 = 256;

/// Fills 96 MiB, and then writes a word of its own to every second page of 64 MiB and to random ones of 32 MiB whenever
/// it is told a number.
const SCATTER: &str = "
import mmap, random, struct
even, chance = mmap.mmap(-1, 64 << 20), mmap.mmap(-1, 32 << 20)
for page in range(16384): even[page*4096] = 1
for page in range(8192): chance[page*4096] = 1
open('/tmp/done-0', 'w').close()
for line in open('/tmp/word'):
    word = int(line)
    for page in range(0, 16384, 2): even[page*4096:page*4096+16] = struct.pack('<QQ', page, word)
    random.seed(word)
    for page in random.sample(range(8192), 3000): chance[page*4096:page*4096+16] = struct.pack('<QQ', page, word)
    open('/tmp/done-%d' % word, 'w').close()
";

fn id(number: u64) -> VmId {
    VmId::from_parts(number, number)
}

fn snapshot(number: u64) -> SnapshotId {
    SnapshotId::from_parts(number, number)
}

/// A VMM's view of its guest's memory.
struct Memory {
    process: File,
    start: u64,
}

impl Memory {
    fn of(bench: &Bench, id: &VmId) -> Self {
        let [pid] = *bench.processes_of(id) else { panic!("it has one process") };
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let bytes = u64::from(MEMORY_MIB) << 20;
        // The kernel may have split the mapping: its parts follow each other.
        let ranges = maps.lines().filter(|line| line.contains("/memory")).map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
        });
        let ranges: Vec<(u64, u64)> = ranges.collect();
        assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:x?}");
        let (start, end) = (ranges[0].0, ranges[ranges.len() - 1].1);
        assert_eq!(end - start, bytes);
        Self { process: File::open(format!("/proc/{pid}/mem")).unwrap(), start }
    }

    /// Numbers of the pages in which two memories differ.
    fn differences(&self, other: &Self) -> Vec<u64> {
        let (mut mine, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut different = Vec::new();
        for mib in 0..u64::from(MEMORY_MIB) {
            let at = mib << 20;
            self.process.read_exact_at(&mut mine, self.start + at).unwrap();
            other.process.read_exact_at(&mut theirs, other.start + at).unwrap();
            let pages = mine.chunks(PAGE_SIZE).zip(theirs.chunks(PAGE_SIZE)).enumerate();
            let first = at / PAGE_SIZE as u64;
            different.extend(pages.filter(|(_, (one, two))| one != two).map(|(page, _)| first + page as u64));
        }
        different
    }
}

struct Scene {
    bench: Bench,
    spec: MachineSpec,
    machine: Arc<dyn Machine>,
}

impl Scene {
    /// A branch of the machine, which stays paused afterwards: so there is something to compare with.
    async fn branch(&self) -> BranchFiles {
        let overlays = self.bench.storage.prepare_overlays(&self.spec.id, &[]).await.unwrap();
        let request = save_to(overlays, true);
        let brancher = self.machine.brancher().unwrap();
        let branch = brancher.branch(request).await.unwrap();
        let pages = branch.memory.pages().unwrap();
        eprintln!("{} ranges, {} KiB changed", pages.ranges.len(), pages.len() >> 10);
        let description = StateDescription {
            memory_mib: MEMORY_MIB,
            disk_mib: DISK_MIB,
            memory: MemoryShape::PagesOverBase,
            compatibility: brancher.compatibility().clone(),
            record: serde_json::Value::Null,
        };
        BranchFiles { vm: self.spec.id.clone(), branch, description }
    }

    /// Launches a machine from a state of this one. It is paused before its first instruction.
    async fn child(&self, number: u64, source: &BranchSource) -> (MachineSpec, Arc<dyn Machine>) {
        let files = self.bench.storage.create_vm_files_from(&id(number), source).await.unwrap();
        let start = MachineStart::Incoming(IncomingState {
            parts: source.parts.clone(),
            memory: source.memory.clone(),
            compatibility: source.description.compatibility.clone(),
        });
        let mut spec = MachineSpec {
            id: id(number),
            name: (&id(number)).into(),
            start,
            directory: files.directory,
            ..self.spec.clone()
        };
        assert!(spec.replace_disk(&files.scratch));
        let child = self.bench.driver.launch(&spec).await.unwrap();
        (spec, child)
    }

    /// Compares the memory of a machine that is launched from a state with the source's.
    async fn compare(&self, number: u64, source: &BranchSource, way: &str) {
        let (spec, child) = self.child(number, source).await;
        let (source, memory) = (Memory::of(&self.bench, &self.spec.id), Memory::of(&self.bench, &spec.id));
        let different = source.differences(&memory);
        assert!(different.is_empty(), "{way}: {} pages, {different:?}", different.len());
        child.kill(LIMIT).await.unwrap();
        self.bench.storage.remove_vm_files(&spec.id).await.unwrap();
    }
}

async fn connect(machine: &dyn Machine, epoch: u64) -> Arc<dyn Guest> {
    let connector = SocketGuestConnector::new(GuestConfig::default());
    connector.connect(&machine.endpoint(), epoch, &Identity::default(), LIMIT).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn children_have_the_memory_of_their_source() {
    let Some(bench) = Bench::open("built").await else { return };
    let spec = bench.make_spec(&id(301)).await;
    let machine = bench.driver.launch(&spec).await.unwrap();
    machine.resume().await.unwrap();
    let guest = connect(&*machine, 1).await;
    run(&*guest, "mkfifo /tmp/word; sleep 1000 > /tmp/word &").await;
    run(&*guest, &format!("setsid python3 -c \"{SCATTER}\" > /tmp/said 2>&1 &")).await;
    let done = |word: u32| format!("until [ -e /tmp/done-{word} ]; do sleep 0.1; done");
    run(&*guest, &done(0)).await;
    guest.close();
    // What a child writes lies scattered over what its source wrote in one piece.
    let first = Scene { bench, spec, machine };
    let source = first
        .bench
        .storage
        .fork_point(first.branch().await, 1_000, MemoryShape::PagesOverBase)
        .await
        .unwrap();
    let (spec, machine) = first.child(302, &source).await;
    first.machine.kill(LIMIT).await.unwrap();
    machine.resume().await.unwrap();
    let guest = connect(&*machine, 2).await;
    let scene = Scene { spec, machine, ..first };
    let storage = &scene.bench.storage;
    for (round, whole) in [(1, false), (2, false), (3, true)] {
        guest.expect_heartbeats(true);
        run(&*guest, &format!("echo {round} > /tmp/word; {}", done(round))).await;
        guest.expect_heartbeats(false);
        let files = scene.branch().await;
        assert!(files.branch.memory.pages().unwrap().ranges.len() > 8_000, "the memory is not scattered");
        let number = 310 + u64::from(round) * 10;
        let source = storage.fork_point(files.clone(), 1, MemoryShape::PagesOverBase).await.unwrap();
        scene.compare(number, &source, "one child of a fork").await;
        let source = storage.fork_point(files.clone(), 1_000, MemoryShape::PagesOverBase).await.unwrap();
        assert!(source.memory.page_bytes() == 0, "the memory of many children is written once");
        scene.compare(number + 1, &source, "many children of a fork").await;
        let kept = snapshot(number);
        let info = storage.write_snapshot(&kept, files, whole, Progress::ignored()).await.unwrap();
        eprintln!("snapshot of {} KiB over {:?}", info.memory_bytes >> 10, info.parent);
        let source = storage.snapshot_source(&kept, 1, MemoryShape::PagesOverBase).await.unwrap();
        scene.compare(number + 2, &source, "a snapshot").await;
        let file = scene.bench.root().join(format!("export-{round}"));
        storage.export_snapshot(&kept, &file, Progress::ignored()).await.unwrap();
        let strange = snapshot(number + 5);
        storage.import_snapshot(&strange, &file, ImportLimits::default(), Progress::ignored()).await.unwrap();
        let source = storage.snapshot_source(&strange, 1, MemoryShape::PagesOverBase).await.unwrap();
        scene.compare(number + 3, &source, "a snapshot that was exported and imported").await;
        scene.machine.resume().await.unwrap();
    }
    scene.machine.kill(LIMIT).await.unwrap();
    scene.bench.expect_nothing_left();
}

/// KiB of the mappings of a file that are in a VMM's memory.
fn resident_kib(pid: i32, file: &str) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut inside, mut kib) = (false, 0);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [range, _, _, _, _, path] if range.contains('-') => inside = path == file,
            [range, ..] if range.contains('-') => inside = false,
            ["Rss:", count, _] if inside => kib += count.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    kib
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_has_booted_gives_its_kernel_back() {
    let Some(bench) = Bench::open("built").await else { return };
    let mut spec = bench.make_spec(&id(341)).await;
    let MachineStart::Boot(boot) = &mut spec.start else { panic!("it boots") };
    // A file of its own: pages that machines of other tests map, too, would stay.
    let own = bench.root().join("kernel-of-its-own");
    std::fs::copy(&boot.kernel, &own).unwrap();
    File::open(&own).unwrap().sync_all().unwrap();
    boot.kernel = own;
    let machine = bench.driver.launch(&spec).await.unwrap();
    let [pid] = *bench.processes_of(&spec.id) else { panic!("it has one process") };
    assert!(resident_kib(pid, "/kernel") > 4_096, "QEMU does not map its kernel");
    machine.resume().await.unwrap();
    let guest = connect(&*machine, 1).await;
    machine.booted();
    // No event tells when the pages are gone.
    let deadline = tokio::time::Instant::now() + LIMIT;
    while resident_kib(pid, "/kernel") > 1_024 {
        assert!(tokio::time::Instant::now() < deadline, "{} KiB are left", resident_kib(pid, "/kernel"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let words = run(&*guest, "cat /proc/cmdline").await;
    assert!(words.contains("percpu_alloc=page"), "{words}");
    machine.kill(LIMIT).await.unwrap();
    bench.expect_nothing_left();
}
