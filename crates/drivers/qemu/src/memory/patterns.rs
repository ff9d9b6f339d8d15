//! Compares memory that was put together with its source, page by page, after writes in many patterns.
//!
//! A process that maps a file privately stands in for a VMM: this one. Its memory when nothing writes any more must be
//! what the base file and the harvested pages make together, and what another memory is after they were injected.
#![allow(unsafe_code)] // Mapping a file and discarding pages, as a VMM does.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use camino::Utf8Path;
use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};
use microvm_ports::branch::{MemoryPages, PAGE_SIZE};

use super::copy::inject;
use super::harvest::Harvest;
use super::mapping::{Mapping, MemoryFile, this_process};
use super::write_log::{copies_ahead, own_descriptor};

/// Pages of one MiB.
const MIB: usize = (1 << 20) / PAGE_SIZE;

/// Repeatable numbers without a library (SplitMix64; the constants are its own).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }
}

/// Memory of a "guest" of this very process.
struct Memory {
    file: tempfile::NamedTempFile,
    map: MmapMut,
    /// Descriptor that the process notes writes with; a VMM is given one when it begins.
    _notes: Option<OwnedFd>,
}

impl Memory {
    /// Every seventh page of the base file holds something.
    fn new(mib: usize) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len((mib << 20) as u64).unwrap();
        for page in (0..mib * MIB).step_by(7) {
            file.as_file().write_all_at(&[0xB5; 64], (page * PAGE_SIZE) as u64).unwrap();
        }
        // SAFETY: nobody else knows the file.
        let map = unsafe { MmapOptions::new().map_copy(file.as_file()) }.unwrap();
        Self { map, _notes: copies_ahead().is_ok().then(|| own_descriptor().unwrap()), file }
    }

    fn memory_file(&self) -> MemoryFile {
        let path = Utf8Path::from_path(self.file.path()).unwrap();
        MemoryFile::of(path, u32::try_from(self.map.len() >> 20).unwrap()).unwrap()
    }

    fn mapping(&self) -> Mapping {
        let process = this_process();
        Mapping { process, start: self.map.as_ptr() as u64, length: self.map.len() as u64 }
    }

    fn write(&mut self, page: usize, value: u64) {
        write(&mut self.map, page, value);
    }

    /// Gives pages back to the host, as a balloon does: they read as the base file again.
    fn discard(&self, first: usize, count: usize) {
        // SAFETY: nobody holds a reference to what the pages contain.
        unsafe {
            let advice = UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, first * PAGE_SIZE, count * PAGE_SIZE).unwrap();
        }
    }

    /// Harvests while `busy` writes, for as long as memory is copied ahead; then nothing writes any more.
    fn harvest(&mut self, ahead: bool, busy: impl Fn(&mut [u8], &AtomicBool) + Sync) -> MemoryPages {
        let (process, file) = (self.mapping().process, self.memory_file());
        let (stop, map) = (AtomicBool::new(false), &mut self.map);
        let harvest = std::thread::scope(|scope| {
            scope.spawn(|| busy(map, &stop));
            let harvest = Harvest::begin(process, file, ahead);
            stop.store(true, Ordering::Relaxed);
            harvest.unwrap()
        });
        assert_eq!(harvest.took() > std::time::Duration::ZERO, ahead);
        harvest.complete().unwrap().into_pages().unwrap()
    }

    /// Compares this memory with the base file and `pages` over it, and with a memory that they were injected into.
    fn compare(&self, pages: &MemoryPages, what: &str) {
        let count = self.map.len() / PAGE_SIZE;
        let mut expected = Assembled::of(self.file.as_file(), count);
        for (range, content) in pages.iter() {
            expected.cover(usize::try_from(range.first).unwrap(), content);
        }
        assert_eq!(expected.differs_from(&self.map), None, "{what}: base and pages");
        // SAFETY: the file is this test's own.
        let other = unsafe { MmapOptions::new().map_copy(self.file.as_file()) }.unwrap();
        inject(&Mapping { start: other.as_ptr() as u64, ..self.mapping() }, pages).unwrap();
        let differs = (0..count).find(|page| other[of(*page)] != self.map[of(*page)]);
        assert_eq!(differs, None, "{what}: injected");
    }
}

fn of(page: usize) -> std::ops::Range<usize> {
    page * PAGE_SIZE..(page + 1) * PAGE_SIZE
}

/// Leaves a page that no other page, and no other value, looks like.
fn write(map: &mut [u8], page: usize, value: u64) {
    let here = &mut map[of(page)];
    here[..8].copy_from_slice(&(page as u64).to_le_bytes());
    here[8..16].copy_from_slice(&value.to_le_bytes());
    here[PAGE_SIZE - 8..].copy_from_slice(&value.to_le_bytes());
}

/// A whole memory, made of a base file and pages over it.
struct Assembled(MmapMut);

impl Assembled {
    fn of(base: &File, pages: usize) -> Self {
        let mut whole = MmapMut::map_anon(pages * PAGE_SIZE).unwrap();
        base.read_exact_at(&mut whole, 0).unwrap();
        Self(whole)
    }

    fn cover(&mut self, first: usize, content: &[u8]) {
        self.0[first * PAGE_SIZE..][..content.len()].copy_from_slice(content);
    }

    /// The first page that is another one.
    fn differs_from(&self, memory: &[u8]) -> Option<usize> {
        (0..memory.len() / PAGE_SIZE).find(|page| self.0[of(*page)] != memory[of(*page)])
    }
}

/// Both ways in which memory is copied, where the kernel has both.
fn ways() -> &'static [bool] {
    match copies_ahead() {
        Ok(()) => &[false, true],
        Err(why) => {
            eprintln!("SKIPPED for memory that is copied ahead: {why}");
            &[false]
        }
    }
}

fn quiet(_: &mut [u8], _: &AtomicBool) {}

#[test]
fn every_number_of_runs_around_a_block_of_the_kernel() {
    for runs in [0, 1, 511, 512, 513, 1_023, 1_024, 1_025, 8_191, 8_192, 8_193, 20_000] {
        for &ahead in ways() {
            let mut memory = Memory::new(1 + runs * 2 / MIB);
            (0..runs).for_each(|run| memory.write(run * 2, 1));
            let pages = memory.harvest(ahead, quiet);
            assert_eq!(pages.ranges.len(), runs);
            memory.compare(&pages, &format!("{runs} runs, ahead: {ahead}"));
        }
    }
}

#[test]
fn two_hundred_thousand_runs() {
    let ahead = ways().contains(&true);
    let mut memory = Memory::new(1_600);
    (0..200_000).for_each(|run| memory.write(run * 2, 1));
    let pages = memory.harvest(ahead, quiet);
    assert_eq!(pages.ranges.len(), 200_000);
    memory.compare(&pages, &format!("ahead: {ahead}"));
}

#[test]
fn random_runs_of_every_length_are_harvested_again_and_again() {
    for &ahead in ways() {
        let (mut memory, mut numbers) = (Memory::new(128), Numbers(7));
        for round in 1..12 {
            let longest = 1 + numbers.next() % [1, 3, 40, 700][round % 4];
            let mut page = 0;
            loop {
                page += usize::try_from(1 + numbers.next() % 9).unwrap();
                for _ in 0..numbers.next() % (longest + 1) {
                    page += 1;
                    if page < 128 * MIB {
                        memory.write(page, round as u64);
                    }
                }
                if page >= 128 * MIB {
                    break;
                }
            }
            let pages = memory.harvest(ahead, quiet);
            memory.compare(&pages, &format!("round {round}, ahead: {ahead}"));
        }
    }
}

#[test]
fn pages_that_are_written_while_they_are_copied() {
    for &ahead in ways() {
        let (mut memory, mut numbers) = (Memory::new(128), Numbers(11));
        for round in 0..6 {
            (0..9_000).for_each(|run| memory.write(run * 3, round));
            let seed = numbers.next();
            let pages = memory.harvest(ahead, |map, stop| {
                let mut numbers = Numbers(seed);
                while !stop.load(Ordering::Relaxed) {
                    let page = usize::try_from(numbers.next() % (128 * MIB as u64)).unwrap();
                    write(map, page, numbers.next());
                }
            });
            memory.compare(&pages, &format!("round {round}, ahead: {ahead}"));
        }
    }
}

/// Pages that were given back read as the base file again, also if that was after they had been copied.
#[test]
fn pages_that_are_discarded_before_and_while_they_are_copied() {
    for &ahead in ways() {
        let mut memory = Memory::new(128);
        (0..10_000).for_each(|run| memory.write(run * 3, 1));
        memory.discard(700, 2_500);
        let mapping = memory.mapping();
        let harvest = Harvest::begin(mapping.process, memory.memory_file(), ahead).unwrap();
        memory.discard(9_000, 3_000);
        (10_000..10_500).for_each(|page| memory.write(page, 2));
        let pages = harvest.complete().unwrap().into_pages().unwrap();
        memory.compare(&pages, &format!("ahead: {ahead}"));
    }
}
