//! Pages of a private mapping that were changed: those that are anonymous now, in memory or swapped out; and which of them
//! were written since they were protected (see `write_log`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use microvm_ports::branch::{PAGE_SIZE, PageRange};

use super::mapping::Mapping;

/// Regions asked for in one call.
const REGIONS: usize = 8_192;
/// Page map entries read at once where the kernel has no scan.
const ENTRIES: usize = 32_768;

// linux/fs.h: categories of a page, flags of a scan, and the request `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// A protected page that is not in memory now was swapped out, or discarded: then the kernel keeps a mark that looks like
/// a swapped page, and the page reads as the base file again. Copying both again is right for both.
const WRITTEN_OR_GONE: u64 = PAGE_IS_WRITTEN | PAGE_IS_SWAPPED;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<ScanArguments>() as u64) << 16) | ((b'f' as u64) << 8) | 16;

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Purpose of a scan.
#[derive(Clone, Copy)]
enum Purpose {
    /// All changed pages.
    Changed,
    /// The same; from now on it is noted which are written.
    Protect,
    /// Those of them that were written, swapped out or discarded since, and those that have changed since for the
    /// first time.
    Written,
}

/// As [`changed_pages`], and from now on the kernel notes which of them are written.
///
/// # Errors
/// If the mapping is not registered with a `userfaultfd` for that.
pub(super) fn protect_changed(mapping: &Mapping) -> io::Result<Vec<PageRange>> {
    scan(&page_map(mapping)?, mapping, Purpose::Protect)
}

/// Pages whose content may differ from what it was at the last [`protect_changed`]: every written one, and those that
/// are not in memory. Complete only while the process does not run.
///
/// # Errors
/// As [`protect_changed`].
pub(super) fn written_pages(mapping: &Mapping) -> io::Result<Vec<PageRange>> {
    scan(&page_map(mapping)?, mapping, Purpose::Written)
}

fn page_map(mapping: &Mapping) -> io::Result<File> {
    File::open(format!("/proc/{}/pagemap", mapping.process.pid))
}

/// Ranges of changed pages, by their number in the mapping, ascending. The process must not run meanwhile if the answer
/// is to be exact.
pub(crate) fn changed_pages(mapping: &Mapping) -> io::Result<Vec<PageRange>> {
    let file = page_map(mapping)?;
    match scan(&file, mapping, Purpose::Changed) {
        // Kernels before 6.7 have no such request.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            read_entries(&file, mapping)
        }
        outcome => outcome,
    }
}

/// Appends pages, joining them with the last range where they follow it.
fn push(ranges: &mut Vec<PageRange>, first: u64, count: u64) {
    match ranges.last_mut() {
        Some(last) if last.end() == first => last.count += count,
        _ => ranges.push(PageRange { first, count }),
    }
}

#[allow(unsafe_code)]
fn scan(file: &File, mapping: &Mapping, purpose: Purpose) -> io::Result<Vec<PageRange>> {
    let (flags, told) = match purpose {
        // Told nothing apart, neighbours come as one region.
        Purpose::Changed => (0, 0),
        Purpose::Protect => (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, 0),
        Purpose::Written => (PM_SCAN_CHECK_WPASYNC, WRITTEN_OR_GONE),
    };
    let end = mapping.start + mapping.length;
    let mut regions = vec![Region::default(); REGIONS];
    let mut ranges = Vec::new();
    let mut at = mapping.start;
    while at < end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            flags,
            start: at,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            // A request that asks to be told nothing is refused; no page of these is of a file.
            return_mask: PAGE_IS_FILE | told,
            ..ScanArguments::default()
        };
        // Needed: neither `rustix` nor `nix` knows the request.
        // SAFETY: the descriptor is valid, the arguments are of the layout and size they say, and `vec` points to
        // `vec_len` regions that live until the call returns.
        let found = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        if found < 0 {
            return Err(io::Error::last_os_error());
        }
        let found = usize::try_from(found).unwrap_or(0).min(REGIONS);
        let wanted = |region: &Region| told == 0 || region.categories & told != 0;
        at = take(&mut ranges, &regions[..found], wanted, mapping, at, arguments.walk_end)?;
    }
    Ok(ranges)
}

/// Adds what is `wanted` of one call's regions about the memory from `at` on; returns where the next call begins.
///
/// `walk_end` is believed only where nothing was reported: a kernel that fills more than one of its inner blocks of 512
/// regions in a call leaves it at the end of an earlier block (seen with Linux 6.18), and whoever goes on from there is
/// told the same regions twice.
///
/// # Errors
/// If a region is empty, lies outside the memory asked about or before one that was reported already, or if nothing
/// was reported and the walk did not advance.
fn take(
    ranges: &mut Vec<PageRange>,
    regions: &[Region],
    wanted: impl Fn(&Region) -> bool,
    mapping: &Mapping,
    at: u64,
    walk_end: u64,
) -> io::Result<u64> {
    let page = PAGE_SIZE as u64;
    let end = mapping.start + mapping.length;
    let mut next = at;
    for region in regions {
        // Mappings begin at a page, so whole pages have addresses that are multiples of their size.
        let whole = region.start.is_multiple_of(page) && region.end.is_multiple_of(page);
        if region.start < next || region.end <= region.start || region.end > end || !whole {
            return Err(io::Error::other("the kernel's scan of the page map is not in order"));
        }
        if wanted(region) {
            push(ranges, (region.start - mapping.start) / page, (region.end - region.start) / page);
        }
        next = region.end;
    }
    if walk_end >= end && regions.len() < REGIONS {
        Ok(end)
    } else if !regions.is_empty() {
        Ok(next)
    } else if walk_end > at {
        Ok(walk_end)
    } else {
        Err(io::Error::other("the kernel's scan of the page map makes no progress"))
    }
}

/// One 64-bit entry per page (linux Documentation/admin-guide/mm/pagemap.rst): bit 63 present, 62 swapped, 61 of a file.
fn read_entries(file: &File, mapping: &Mapping) -> io::Result<Vec<PageRange>> {
    let pages = mapping.length / PAGE_SIZE as u64;
    let first_entry = mapping.start / PAGE_SIZE as u64;
    let mut ranges = Vec::new();
    let mut bytes = vec![0; ENTRIES * 8];
    let mut page = 0;
    while page < pages {
        let count = usize::try_from(pages - page).unwrap_or(ENTRIES).min(ENTRIES);
        let bytes = &mut bytes[..count * 8];
        file.read_exact_at(bytes, (first_entry + page) * 8)?;
        for (index, entry) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*entry);
            let (present, swapped, of_file) = (entry >> 63 & 1, entry >> 62 & 1, entry >> 61 & 1);
            if (present == 1 && of_file == 0) || swapped == 1 {
                push(&mut ranges, page + index as u64, 1);
            }
        }
        page += count as u64;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use microvm_confinement::ProcessIdentity;

    use super::super::mapping::this_process;
    use super::*;

    /// A private mapping of a file in this very process.
    #[test]
    fn exactly_the_written_pages_are_found_by_both_ways() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE_SIZE as u64).unwrap();
        file.write_all_at(&[7; PAGE_SIZE], 9 * PAGE_SIZE as u64).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: nobody else knows the file.
        let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.unwrap();
        for page in [3, 4, 5, 20, 63] {
            map[page * PAGE_SIZE] = 1;
        }
        // Reading does not change a page.
        assert_eq!((map[9 * PAGE_SIZE], map[30 * PAGE_SIZE]), (7, 0));
        let process = this_process();
        let mapping = Mapping { process, start: map.as_ptr() as u64, length: map.len() as u64 };
        let expected: Vec<PageRange> =
            [(3, 3), (20, 1), (63, 1)].map(|(first, count)| PageRange { first, count }).into();
        assert_eq!(changed_pages(&mapping).unwrap(), expected);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(read_entries(&pagemap, &mapping).unwrap(), expected);
    }

    const MAPPING: Mapping =
        Mapping { process: ProcessIdentity { pid: 1, start_ticks: 0 }, start: 0x10_0000, length: 0x10_0000 };

    fn all(_: &Region) -> bool {
        true
    }

    fn region(first: u64, end: u64) -> Region {
        let address = |page| MAPPING.start + page * PAGE_SIZE as u64;
        Region { start: address(first), end: address(end), categories: 0 }
    }

    #[test]
    fn the_next_call_begins_where_the_last_region_ended_whatever_the_kernel_says() {
        let (start, page) = (MAPPING.start, PAGE_SIZE as u64);
        let mut ranges = Vec::new();
        let list = [region(1, 3), region(3, 4), region(9, 10)];
        let next = take(&mut ranges, &list, all, &MAPPING, start, start + 2 * page).unwrap();
        assert_eq!(next, start + 10 * page);
        assert_eq!(ranges, [PageRange { first: 1, count: 3 }, PageRange { first: 9, count: 1 }]);
        assert_eq!(
            take(&mut ranges, &[], all, &MAPPING, next, start + 12 * page).unwrap(),
            start + 12 * page
        );
        let written = |region: &Region| region.categories & PAGE_IS_WRITTEN != 0;
        let mixed = [region(11, 12), Region { categories: PAGE_IS_WRITTEN, ..region(12, 13) }];
        take(&mut ranges, &mixed, written, &MAPPING, next, 0).unwrap();
        assert_eq!(ranges.last(), Some(&PageRange { first: 12, count: 1 }));
        let end = start + MAPPING.length;
        assert_eq!(take(&mut ranges, &[region(20, 256)], all, &MAPPING, next, end).unwrap(), end);
    }

    #[test]
    fn regions_out_of_order_or_place_are_refused() {
        let at = MAPPING.start + 5 * PAGE_SIZE as u64;
        let unaligned = Region { start: at + 8, ..region(0, 7) };
        for list in [
            vec![region(4, 6)],
            vec![region(6, 6)],
            vec![region(8, 7)],
            vec![region(200, 257)],
            vec![region(6, 8), region(7, 9)],
            vec![unaligned],
            vec![Region::default()],
        ] {
            assert!(take(&mut Vec::new(), &list, all, &MAPPING, at, u64::MAX).is_err(), "{list:?}");
        }
        assert!(take(&mut Vec::new(), &[], all, &MAPPING, at, at).is_err(), "a scan without progress");
    }
}
