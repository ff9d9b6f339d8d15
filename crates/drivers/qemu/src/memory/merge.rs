//! Puts pages that were copied while a guest ran together with those that were copied again in its pause.

use microvm_ports::branch::{MemoryPages, PageRange};

use super::copy::{Copied, PageBuffer, total};

/// All pages of both; where both have one, it is that of `late`. In place where the buffer of `ahead` has room for it, else
/// in one of so many bytes by `room_for`.
pub(super) fn merge<E>(
    ahead: Copied,
    late: Copied,
    room_for: impl FnOnce(usize) -> Result<PageBuffer, E>,
) -> Result<MemoryPages, E> {
    let Copied { ranges: old, mut buffer } = ahead;
    let layout = Layout::of(PageRange::union([&*old, &*late.ranges].concat()));
    let bytes = total(&layout.ranges);
    if bytes > total(&old) {
        let mut larger = if bytes > buffer.capacity() { Some(room_for(bytes)?) } else { None };
        // From the end on: nothing moves to where something is that has not moved yet.
        let mut at = total(&old);
        for range in old.iter().rev() {
            let length = length_of(range);
            at -= length;
            let to = layout.place(range);
            match &mut larger {
                Some(larger) => larger.0[to..to + length].copy_from_slice(&buffer.0[at..at + length]),
                None => buffer.0.copy_within(at..at + length, to),
            }
        }
        buffer = larger.unwrap_or(buffer);
    }
    let mut at = 0;
    for range in &late.ranges {
        let (length, to) = (length_of(range), layout.place(range));
        buffer.0[to..to + length].copy_from_slice(&late.buffer.0[at..at + length]);
        at += length;
    }
    Ok(Copied { ranges: layout.ranges, buffer }.into())
}

/// Place of each page of some ranges, which lie one after the other.
struct Layout {
    ranges: Vec<PageRange>,
    /// Of the first byte of each range.
    places: Vec<usize>,
}

impl Layout {
    fn of(ranges: Vec<PageRange>) -> Self {
        let mut next = 0;
        let place = |range: &PageRange| {
            let place = next;
            next += length_of(range);
            place
        };
        Self { places: ranges.iter().map(place).collect(), ranges }
    }

    /// Place of the first byte of a range that lies within one of these.
    fn place(&self, range: &PageRange) -> usize {
        let index = self.ranges.partition_point(|one| one.end() <= range.first);
        let before = length_of(&PageRange { first: 0, count: range.first - self.ranges[index].first });
        self.places[index] + before
    }
}

/// Bytes of a range.
fn length_of(range: &PageRange) -> usize {
    total(std::slice::from_ref(range))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use microvm_ports::branch::PAGE_SIZE;
    use proptest::prelude::*;

    use super::*;

    /// Pages with a byte each, as they lie in a buffer with room for `spare` more.
    fn copied(pages: &BTreeMap<u64, u8>, spare: usize) -> Copied {
        let ranges = PageRange::union(pages.keys().map(|&first| PageRange { first, count: 1 }).collect());
        let mut buffer = PageBuffer::with_capacity(total(&ranges) + spare * PAGE_SIZE).unwrap();
        for (index, byte) in pages.values().enumerate() {
            buffer.0[index * PAGE_SIZE..(index + 1) * PAGE_SIZE].fill(*byte);
        }
        Copied { ranges, buffer }
    }

    proptest! {
        #[test]
        fn the_later_copy_wins_and_nothing_is_lost(
            ahead in proptest::collection::btree_map(0u64..60, any::<u8>(), 0..50),
            late in proptest::collection::btree_map(0u64..60, any::<u8>(), 0..50),
            spare in 0usize..40,
        ) {
            let merged = merge(copied(&ahead, spare), copied(&late, 0), PageBuffer::with_capacity).unwrap();
            let mut expected = ahead;
            expected.extend(late);
            let mut found = BTreeMap::new();
            for (range, content) in merged.iter() {
                for (page, bytes) in (range.first..).zip(content.chunks(PAGE_SIZE)) {
                    prop_assert!(bytes.len() == PAGE_SIZE && bytes.iter().all(|byte| *byte == bytes[0]));
                    prop_assert!(found.insert(page, bytes[0]).is_none());
                }
            }
            prop_assert_eq!(found, expected);
            let apart = merged.ranges.windows(2).all(|pair| pair[0].end() < pair[1].first);
            prop_assert!(apart, "ranges touch each other: {:?}", merged.ranges);
        }
    }
}
