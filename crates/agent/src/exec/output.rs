//! The last part of what a process has written, addressed by absolute offsets.

use std::collections::VecDeque;

use bytes::Bytes;
use microvm_protocol::frame::GUEST_BULK;

/// Most bytes kept per stream: twice the window of a channel stream, so that what was in flight when a reader was lost
/// is still there for the next one.
pub(crate) const CAPACITY: usize = 1024 * 1024;
/// Most bytes read from a process at once, and so added to what is kept.
pub(crate) const MOST_READ: usize = 64 * 1024;
/// A process whose output nobody takes is held up at so many bytes. A reader that is lost has taken at most a window (half
/// of what is kept) and one piece that waited for credit; what is read last comes on top. All of it is still kept then.
pub(crate) const HOLD: u64 = (CAPACITY / 2 - MOST_READ - GUEST_BULK) as u64;

/// One output of one process.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: VecDeque<u8>,
    start: u64,
    taken: u64,
    /// Everything the process had written when it ended is here.
    pub(crate) finished: bool,
}

impl Output {
    /// Offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Bytes kept.
    pub(crate) fn kept(&self) -> usize {
        self.bytes.len()
    }

    /// Whether more may be read from the process now.
    pub(crate) fn has_room(&self) -> bool {
        self.end() - self.taken < HOLD
    }

    /// Whether a reader has taken everything.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken >= self.end()
    }

    /// Appends; the oldest bytes beyond the capacity are forgotten.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let surplus = self.bytes.len().saturating_sub(CAPACITY);
        self.bytes.drain(..surplus);
        self.start += surplus as u64;
        self.taken = self.taken.max(self.start);
    }

    /// The next reader begins here; returns the offset it really gets: the nearest that is still kept.
    pub(crate) fn seek(&mut self, offset: Option<u64>) -> u64 {
        self.taken = offset.map_or(self.start, |offset| offset.clamp(self.start, self.end()));
        self.taken
    }

    /// Takes at most `most` bytes; empty if there is nothing new.
    pub(crate) fn take(&mut self, most: usize) -> Bytes {
        let taken = self.peek(self.taken, most);
        self.taken += taken.len() as u64;
        taken
    }

    /// Offset of the oldest byte kept.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// At most `most` of the bytes kept from `offset` on, for somebody who takes nothing.
    pub(crate) fn peek(&self, offset: u64, most: usize) -> Bytes {
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

    /// Forgets what is kept (an old process whose output is no longer worth its memory).
    pub(crate) fn forget(&mut self) {
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
        let mut output = Output::default();
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
        let mut output = Output::default();
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
        let mut output = Output::default();
        output.push(b"first second");
        assert_eq!(&output.take(6)[..], b"first ");
        assert_eq!(&output.peek(0, 100)[..], b"first second");
        assert_eq!(&output.peek(6, 3)[..], b"sec");
        assert!(output.peek(12, 100).is_empty() && output.peek(99, 100).is_empty());
        assert_eq!(&output.take(100)[..], b"second");
    }

    #[test]
    fn holds_up_until_taken() {
        let mut output = Output::default();
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
