//! What an interpreter writes, in the manner of its language.
//!
//! Python's answers all come as lines, outputs of the code included. Those of bash and of JavaScript stand in the raw outputs of the
//! process, between two NULs behind the number of the request: nothing in the guest has to copy what the code writes.

use microvm_api::context::Language;

use super::frames::{Frame, Frames, LONGEST_LINE, cost, read};
use crate::failure::Failure;

/// Output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

/// Reader of what belongs to one request.
#[derive(Debug)]
pub(super) enum Answers {
    Lines(Frames),
    Marked([Marked; 2]),
}

impl Answers {
    /// Reader for the request with this number.
    pub(super) fn new(language: Language, number: u64) -> Self {
        match language {
            Language::Python => Self::Lines(Frames::default()),
            Language::JavaScript | Language::Bash => {
                Self::Marked([Output::Stdout, Output::Stderr].map(|output| Marked::new(output, number)))
            }
        }
    }

    /// Takes a piece of an output; gives what it completes, with the number of the request that it belongs to. `charge` is asked for
    /// the bytes that are needed before they are taken.
    pub(super) fn take(
        &mut self,
        output: Output,
        piece: &[u8],
        charge: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Vec<(Option<u64>, Frame)>, Failure> {
        match self {
            // Its standard error is the interpreter's own, when it dies.
            Self::Lines(_) if output == Output::Stderr => Ok(Vec::new()),
            Self::Lines(lines) => lines.take(piece, charge),
            Self::Marked(outputs) => {
                let [one, other] = outputs;
                let (at, other) = if output == Output::Stdout { (one, &*other) } else { (other, &*one) };
                let mut found = at.take(piece, charge)?;
                // Both outputs have an end. The first is not it.
                if !other.has_ended {
                    found.retain(|frame| *frame != Frame::EndOfExecution);
                }
                let number = at.number;
                Ok(found.into_iter().map(|frame| (Some(number), frame)).collect())
            }
        }
    }
}

/// One output with marks in it.
#[derive(Debug)]
pub(super) struct Marked {
    output: Output,
    number: u64,
    /// How a mark of the request begins.
    mark: Vec<u8>,
    /// Bytes that may be part of a mark, or of a character.
    held: Vec<u8>,
    /// Bytes behind the beginning of a mark in `held` that have no end of it.
    seen: usize,
    /// What comes is the code's.
    has_begun: bool,
    has_ended: bool,
}

impl Marked {
    fn new(output: Output, number: u64) -> Self {
        let mark = format!("\0microvm-context {number} ").into_bytes();
        Self { output, number, mark, held: Vec::new(), seen: 0, has_begun: false, has_ended: false }
    }

    fn take(
        &mut self,
        piece: &[u8],
        mut charge: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Vec<Frame>, Failure> {
        charge(4 * (self.held.len() + piece.len()))?;
        self.held.extend_from_slice(piece);
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            let rest = &self.held[at..];
            let Some(start) = find(rest, &self.mark) else { break };
            let inside = &rest[start + self.mark.len()..];
            let seen = std::mem::take(&mut self.seen);
            let Some(end) = inside[seen..].iter().position(|&byte| byte == 0) else {
                if inside.len() > LONGEST_LINE {
                    return Err(super::frames::too_long());
                }
                self.seen = inside.len();
                let before = rest[..start].to_vec();
                self.text(&before, true, &mut found);
                self.held.drain(..at + start);
                return Ok(found);
            };
            let (before, line) = (rest[..start].to_vec(), inside[..seen + end].to_vec());
            at += start + self.mark.len() + seen + end + 1;
            self.text(&before, true, &mut found);
            charge(cost(&line))?;
            let frame = read(&line).map_or(Frame::Unreadable, |(_, frame)| frame);
            match frame {
                Frame::NumberOfExecutions { .. } => self.has_begun = true,
                Frame::EndOfExecution => (self.has_begun, self.has_ended) = (false, true),
                _ => {}
            }
            // Told once, by standard output.
            if self.output == Output::Stdout || !matches!(frame, Frame::NumberOfExecutions { .. }) {
                found.push(frame);
            }
        }
        let rest = self.held.split_off(at);
        let kept = rest.len() - begun(&rest, &self.mark);
        let taken = self.text(&rest[..kept], false, &mut found);
        self.held = rest[taken..].to_vec();
        Ok(found)
    }

    /// Tells of text of the code's; that of others, before it began or after its end, is left out. `whole`: nothing follows, so that a
    /// character that was begun is none. Gives the bytes that were taken.
    fn text(&self, bytes: &[u8], whole: bool, found: &mut Vec<Frame>) -> usize {
        let taken = match std::str::from_utf8(bytes) {
            Err(error) if !whole && error.error_len().is_none() => error.valid_up_to(),
            // Of several odd places only the last may be a character that goes on.
            Err(_) if !whole => bytes.len() - unfinished(bytes),
            _ => bytes.len(),
        };
        if self.has_begun && taken > 0 {
            let text = String::from_utf8_lossy(&bytes[..taken]).into_owned();
            found.push(match self.output {
                Output::Stdout => Frame::Stdout { text },
                Output::Stderr => Frame::Stderr { text },
            });
        }
        taken
    }
}

/// Bytes at the end that may be the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let goes_on = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    if goes_on { last.len() } else { 0 }
}

/// Place of the first `mark`.
fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&byte| byte == 0) {
        if bytes[from + at..].starts_with(mark) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// Bytes at the end that a mark begins with. A mark has one NUL, its first byte.
fn begun(bytes: &[u8], mark: &[u8]) -> usize {
    let at = bytes.iter().rposition(|&byte| byte == 0);
    at.map_or(0, |at| if mark.starts_with(&bytes[at..]) { bytes.len() - at } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(frames: &[(Option<u64>, Frame)]) -> String {
        let text = |(_, frame): &(Option<u64>, Frame)| match frame {
            Frame::Stdout { text } => text.clone(),
            Frame::Stderr { text } => format!("[{text}]"),
            frame => format!("<{frame:?}>"),
        };
        frames.iter().map(text).collect()
    }

    #[test]
    fn text_between_begin_and_end_comes_whole_out_of_any_pieces() {
        let begin = r#"{"type": "number_of_executions", "execution_count": 3}"#;
        let end = r#"{"type": "end_of_execution"}"#;
        let out = format!(
            "old\0microvm-context 6 {end}\0\0microvm-context 7 {begin}\0é€😀 \0microvm-context 8 {end}\0\0micro\0\
             \0microvm-context 7 {{\0more\0microvm-context 7 {end}\0after"
        );
        let error = format!("old\0microvm-context 7 {begin}\0e\0microvm-context 7 {end}\0after");
        let mut bytes = out.into_bytes();
        let odd = bytes.windows(4).position(|window| window == b"more").unwrap();
        bytes.splice(odd..odd, [0xff, 0xe2]);
        for size in [1, 2, 3, 5, 50, 1000] {
            let (mut answers, mut found) = (Answers::new(Language::Bash, 7), Vec::new());
            for piece in bytes.chunks(size) {
                found.extend(answers.take(Output::Stdout, piece, |_| Ok(())).unwrap());
            }
            let wanted = format!(
                "<NumberOfExecutions {{ execution_count: 3 }}>é€😀 \0microvm-context 8 {end}\0\0micro\0<Unreadable>\u{fffd}\u{fffd}more"
            );
            assert_eq!(texts(&found), wanted, "in pieces of {size}");
            found.clear();
            for piece in error.as_bytes().chunks(size) {
                found.extend(answers.take(Output::Stderr, piece, |_| Ok(())).unwrap());
            }
            assert_eq!(texts(&found), "[e]<EndOfExecution>", "in pieces of {size}");
        }
    }

    #[test]
    fn a_mark_without_an_end_is_refused_and_text_is_not_held() {
        let mut answers = Answers::new(Language::JavaScript, 7);
        let take = |answers: &mut Answers, bytes: &[u8]| answers.take(Output::Stdout, bytes, |_| Ok(()));
        let Answers::Marked([out, _]) = &mut answers else { unreachable!() };
        out.has_begun = true;
        for _ in 0..40 {
            take(&mut answers, &vec![b'x'; 1 << 20]).unwrap();
        }
        let Answers::Marked([out, _]) = &answers else { unreachable!() };
        assert!(out.held.is_empty());
        take(&mut answers, b"\0microvm-context 7 {").unwrap();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..20).find_map(|_| take(&mut answers, &piece).err()).unwrap();
        assert_eq!(refused.0.code, "context_broken");
    }
}
