//! Measures the snapshot store: `cargo run --release -p microvm-driver-disks --example snapshot_times [directory]`.
//!
//! A VM of 256 MiB with 90 MiB in use; forks and snapshots of it with 1 and 64 MiB changed. Medians of nine rounds. As
//! floors: copying and hashing as many bytes.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program for developers")]

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_driver_disks::{Disks, DisksConfig};
use microvm_ports::StateParts;
use microvm_ports::branch::{
    Branch, BranchTimes, Compatibility, MemoryPages, PAGE_SIZE, PageRange, StateMemory,
};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, StateDescription};
use microvm_ports::{Clock, Progress, SnapshotStore, VmStorage};
use microvm_types::{SnapshotId, VmId};
use sha2::Digest;

const MEMORY_MIB: u32 = 256;
const ROUNDS: usize = 9;

struct HostClock;

impl Clock for HostClock {
    fn now_ms(&self) -> i64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(now.as_millis()).unwrap()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        bytes.iter_mut().zip(nanos.to_le_bytes().into_iter().cycle()).for_each(|(byte, value)| *byte = value);
    }
}

/// Pages in runs of four, as a guest changes them, with content that does not repeat.
fn pages(first: u64, mib: u64, salt: u64) -> MemoryPages {
    let count = mib * 256;
    let ranges = (0..count / 4).map(|run| PageRange { first: first + run * 5, count: 4 }).collect();
    let mut state = salt | 1;
    let data: Vec<u8> = (0..count * PAGE_SIZE as u64 / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    MemoryPages { ranges, data: data.into() }
}

struct Bench {
    storage: Disks,
    next: u64,
}

impl Bench {
    async fn branch(&self, vm: &VmId, base: &Utf8Path, pages: &MemoryPages) -> (BranchFiles, Duration) {
        let begin = Instant::now();
        let disks = self.storage.prepare_overlays(vm, &[]).await.unwrap();
        let took = begin.elapsed();
        let files = BranchFiles {
            vm: vm.clone(),
            branch: Branch {
                parts: StateParts::single(vec![3; 60_000].into()),
                memory: StateMemory::Pages { base: base.to_owned(), pages: pages.clone() },
                disks,
                times: BranchTimes::default(),
                ended: false,
            },
            description: StateDescription {
                memory_mib: MEMORY_MIB,
                disk_mib: 1024,
                memory: MemoryShape::PagesOverBase,
                compatibility: Compatibility::new(),
                record: serde_json::Value::Null,
            },
        };
        (files, took)
    }

    fn id(&mut self) -> SnapshotId {
        self.next += 1;
        SnapshotId::from_parts(1_700_000_000_000 + self.next, self.next)
    }

    fn vm(&mut self) -> VmId {
        self.next += 1;
        VmId::from_parts(1_700_000_000_000 + self.next, self.next)
    }
}

fn tell(what: &str, times: &mut [Duration], more: &str) {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{what:<58} {:>8.2} ms  (worst {:.2}) {more}",
        ms(times[times.len() / 2]),
        ms(times[times.len() - 1])
    );
}

fn floor(bytes: &[u8]) {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            std::hint::black_box(sha2::Sha256::digest(bytes));
            begin.elapsed()
        })
        .collect();
    tell(&format!("floor: SHA-256 of {} MiB", bytes.len() >> 20), &mut times, "");
    let mut target = vec![1; bytes.len()];
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            std::hint::black_box(&mut target).copy_from_slice(bytes);
            begin.elapsed()
        })
        .collect();
    tell(&format!("floor: memcpy of {} MiB", bytes.len() >> 20), &mut times, "");
}

async fn measure(bench: &mut Bench) {
    let zero = bench.storage.zero_memory(MEMORY_MIB).await.unwrap();
    let parent = bench.vm();
    bench.storage.create_vm_files(&parent, 1024).await.unwrap();
    let booted = pages(0, 90, 7);
    floor(&booted.data);
    let (mut prepare, mut first, mut full) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let (files, took) = bench.branch(&parent, &zero, &booted).await;
        prepare.push(took);
        let begin = Instant::now();
        drop(bench.storage.fork_point(files, 1, MemoryShape::PagesOverBase).await.unwrap());
        first.push(begin.elapsed());
        bench.storage.collect_snapshot_garbage(0).await.unwrap();
    }
    tell("prepare_overlays", &mut prepare, "");
    tell("fork_point of a booted VM (90 MiB over zeros)", &mut first, "");
    let golden = bench.id();
    for round in 0..3 {
        let (files, _) = bench.branch(&parent, &zero, &booted).await;
        let id = if round == 2 { golden.clone() } else { bench.id() };
        let begin = Instant::now();
        bench.storage.write_snapshot(&id, files, true, Progress::ignored()).await.unwrap();
        full.push(begin.elapsed());
    }
    tell("write_snapshot, full, 90 MiB", &mut full, "");
    let begin = Instant::now();
    let source = bench.storage.snapshot_source(&golden, 1, MemoryShape::PagesOverBase).await.unwrap();
    tell("snapshot_source of it, first (materialises)", &mut [begin.elapsed()], "");
    let mut again: Vec<_> = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        bench.storage.snapshot_source(&golden, 1, MemoryShape::PagesOverBase).await.unwrap();
        again.push(begin.elapsed());
    }
    tell("snapshot_source of it, later", &mut again, "");
    for mib in [1, 64] {
        let changed = pages(40_000, mib, 99 + mib);
        let child = bench.vm();
        bench.storage.create_vm_files_from(&child, &source).await.unwrap();
        for count in [1, 100] {
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let (files, _) = bench.branch(&child, source.memory.file().unwrap(), &changed).await;
                let begin = Instant::now();
                drop(bench.storage.fork_point(files, count, MemoryShape::PagesOverBase).await.unwrap());
                times.push(begin.elapsed());
                bench.storage.collect_snapshot_garbage(u64::MAX).await.unwrap();
            }
            tell(&format!("fork_point for {count}, {mib} MiB over a base of 90 MiB"), &mut times, "");
        }
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            // A new child each time: a VM's next snapshot builds on its last.
            let child = bench.vm();
            bench.storage.create_vm_files_from(&child, &source).await.unwrap();
            let (files, _) = bench.branch(&child, source.memory.file().unwrap(), &changed).await;
            let id = bench.id();
            let begin = Instant::now();
            let info = bench.storage.write_snapshot(&id, files, false, Progress::ignored()).await.unwrap();
            times.push(begin.elapsed());
            bytes = bytes.max(info.own_bytes.saturating_sub(info.memory_bytes));
            assert_eq!((info.parent, info.memory_bytes), (Some(golden.clone()), mib << 20));
        }
        tell(
            &format!("write_snapshot, {mib} MiB changed"),
            &mut times,
            &format!("{} KiB on disk beside the pages", bytes >> 10),
        );
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let vm = bench.vm();
        let begin = Instant::now();
        bench.storage.create_vm_files_from(&vm, &source).await.unwrap();
        times.push(begin.elapsed());
    }
    tell("create_vm_files_from", &mut times, "");
}

fn main() {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let directory = root.join(format!("snapshot-times-{}", std::process::id()));
    let root = Utf8PathBuf::from_path_buf(directory.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let storage = Disks::open(DisksConfig::new(root), std::sync::Arc::new(HostClock)).unwrap();
        measure(&mut Bench { storage, next: 0 }).await;
    });
    std::fs::remove_dir_all(directory).unwrap();
}
