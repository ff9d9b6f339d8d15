//! The last part of the output of a process, addressed by offsets from its beginning.

use std::collections::VecDeque;

use bytes::Bytes;
use microvm_protocol::frame::GUEST_BULK;

/// Most bytes kept per output: twice the window of a channel stream. Bytes in flight when a reader is lost are then still
/// there for the next one.
pub(in crate::core) const CAPACITY: usize = 1024 * 1024;
/// Most bytes read from a process at once, and so added to the buffer.
pub(in crate::core) const MOST_READ: usize = 64 * 1024;
/// Bytes not yet taken at which a process is no longer read from, so that it blocks. A lost reader has taken at most a
/// window (half of the capacity) and one piece that waited for credit, and one read may come on top: all of it fits.
pub(in crate::core) const HOLD: u64 = (CAPACITY / 2 - MOST_READ - GUEST_BULK) as u64;

/// Buffer of one output of one process.
#[derive(Debug, Default)]
pub(in crate::core) struct OutputBuffer {
    bytes: VecDeque<u8>,
    start: u64,
    taken: u64,
    /// The process has ended and all its output is here.
    pub(in crate::core) finished: bool,
}

impl OutputBuffer {
    /// Offset after the last byte.
    pub(in crate::core) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Number of bytes kept.
    pub(in crate::core) fn kept(&self) -> usize {
        self.bytes.len()
    }

    /// Returns true if more may be read from the process now.
    pub(in crate::core) fn has_room(&self) -> bool {
        self.end() - self.taken < HOLD
    }

    /// Returns true if a reader has taken everything.
    pub(in crate::core) fn is_taken(&self) -> bool {
        self.taken >= self.end()
    }

    /// Appends bytes; the oldest beyond the capacity are dropped.
    pub(in crate::core) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let surplus = self.bytes.len().saturating_sub(CAPACITY);
        self.bytes.drain(..surplus);
        self.start += surplus as u64;
        self.taken = self.taken.max(self.start);
    }

    /// Moves the reader to `offset`, or to the nearest byte still kept; returns the offset it got.
    pub(in crate::core) fn seek(&mut self, offset: Option<u64>) -> u64 {
        self.taken = offset.map_or(self.start, |offset| offset.clamp(self.start, self.end()));
        self.taken
    }

    /// Takes at most `most` bytes; empty if there is nothing new.
    pub(in crate::core) fn take(&mut self, most: usize) -> Bytes {
        let taken = self.peek(self.taken, most);
        self.taken += taken.len() as u64;
        taken
    }

    /// Offset of the oldest byte kept.
    pub(in crate::core) fn start(&self) -> u64 {
        self.start
    }

    /// Copies at most `most` of the bytes kept from `offset` on, without moving the reader.
    pub(in crate::core) fn peek(&self, offset: u64, most: usize) -> Bytes {
        let from =
            usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        let count = (self.bytes.len() - from).min(most);
        let (first, second) = self.bytes.as_slices();
        let mut copy = Vec::with_capacity(count);
        if from < first.len() {
            copy.extend_from_slice(&first[from..first.len().min(from + count)]);
        }
        let rest = count - copy.len();
        let from_second = from.saturating_sub(first.len());
        copy.extend_from_slice(&second[from_second..from_second + rest]);
        copy.into()
    }

    /// Drops all bytes, to free the memory of an old process.
    pub(in crate::core) fn forget(&mut self) {
        self.start = self.end();
        self.taken = self.start;
        self.bytes = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_and_its_offsets() {
        let mut output = OutputBuffer::default();
        let mut total = 0u64;
        for round in 0..100u8 {
            let bytes = vec![round; 30_000];
            output.push(&bytes);
            total += 30_000;
        }
        assert_eq!(output.end(), total);
        assert_eq!(output.kept(), CAPACITY);
        let begin = output.seek(Some(0));
        assert_eq!(begin, total - CAPACITY as u64);
        let mut seen = begin;
        loop {
            let bytes = output.take(7001);
            if bytes.is_empty() {
                break;
            }
            for byte in &bytes {
                assert_eq!(u64::from(*byte), seen / 30_000);
                seen += 1;
            }
        }
        assert_eq!(seen, total);
        assert_eq!(output.seek(Some(total + 5)), total);
    }

    #[test]
    fn what_a_lost_reader_had_taken_is_still_kept() {
        use microvm_protocol::flow::INITIAL_WINDOW;
        let mut output = OutputBuffer::default();
        let mut on_the_way = 0;
        while on_the_way < INITIAL_WINDOW as usize + GUEST_BULK {
            output.push(&[1; GUEST_BULK]);
            on_the_way += output.take(GUEST_BULK).len();
        }
        while output.has_room() {
            output.push(&[2; MOST_READ]);
        }
        assert_eq!(output.seek(Some(0)), 0);
    }

    #[test]
    fn looking_takes_nothing() {
        let mut output = OutputBuffer::default();
        output.push(b"first second");
        assert_eq!(&output.take(6)[..], b"first ");
        assert_eq!(&output.peek(0, 100)[..], b"first second");
        assert_eq!(&output.peek(6, 3)[..], b"sec");
        assert!(output.peek(12, 100).is_empty() && output.peek(99, 100).is_empty());
        assert_eq!(&output.take(100)[..], b"second");
    }

    #[test]
    fn holds_up_until_taken() {
        let mut output = OutputBuffer::default();
        while output.has_room() {
            output.push(&[1; 4096]);
        }
        assert!((HOLD..HOLD + 4096).contains(&output.end()));
        output.take(8192);
        assert!(output.has_room());
        // What was taken can still be had again.
        assert_eq!(output.seek(Some(0)), 0);
    }
}
