//! Counts the memory that a thread holds.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Most bytes that one thread may hold. What asks for more gets nothing, and ends the process: better than the host.
const HELD_MAX: isize = 2 << 30;

/// The system's allocator with a count for each thread.
struct Counting;

thread_local! {
    // Constants without destructors: nothing is allocated to use them.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Books a change; `false` if a thread would hold too much.
fn book(bytes: isize) -> bool {
    let held = HELD.get().saturating_add(bytes);
    if held > HELD_MAX {
        return false;
    }
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
    true
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// Why `unsafe`: an allocator cannot be written without it.
// SAFETY: every call is handed to the system's allocator unchanged; the books are plain numbers of this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !book(signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !book(signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        book(-signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !book(signed(size) - signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `work`; gives its result, and the most bytes it held at once on this thread beyond what was held before.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_was_held_is_counted() {
        let (length, peak) = peak_of(|| {
            let large = vec![1u8; 1 << 20];
            let mut grown = Vec::new();
            grown.resize(1 << 16, 1u8);
            large.len() + grown.len()
        });
        assert_eq!(length, (1 << 20) + (1 << 16));
        assert!(((1 << 20) + (1 << 16)..2 << 20).contains(&peak), "{peak}");
        assert!(peak_of(|| drop(vec![0u8; 100])).1 < 200);
    }
}
