//! Lines of an interpreter. They are the guest's word: long ones are refused, odd ones left out.

use microvm_api::context::CodeResult;
use microvm_types::ErrorKind;
use serde::Deserialize;

use crate::failure::Failure;

/// Longest line in bytes: twice what our interpreter writes at most.
pub(super) const LONGEST_LINE: usize = 12 << 20;

/// Bytes of a line whose values are not counted: what a request holds anyway covers them.
const SHORT: usize = 256 << 10;
/// Bytes that a value in JSON takes when it was read.
const VALUE: usize = 64;

/// One line of an interpreter.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// It takes requests.
    Ready,
    /// It has the code of a request, and waits.
    Loaded,
    /// It begins with one.
    NumberOfExecutions { execution_count: u64 },
    /// Standard output.
    Stdout { text: String },
    /// Standard error.
    Stderr { text: String },
    /// A value.
    Result(Box<CodeResult>),
    /// An exception.
    Error { name: String, value: String, traceback: String },
    /// More lines are wanted.
    Incomplete,
    /// It has done with a request.
    EndOfExecution,
    /// Of a newer version, or of the guest's own.
    Other,
    /// A line of a request that is none of these.
    Unreadable,
}

/// Fields of every line.
#[derive(Deserialize)]
struct Head {
    id: Option<u64>,
    r#type: String,
}

#[derive(Deserialize)]
struct Count {
    execution_count: u64,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

#[derive(Deserialize)]
struct Exception {
    name: String,
    value: String,
    traceback: String,
}

/// Reads a line in two passes: one that keeps only the head, and one into the shape that it names, so that nothing is read into
/// memory twice.
pub(super) fn read(line: &[u8]) -> serde_json::Result<(Option<u64>, Frame)> {
    let Head { id, r#type } = serde_json::from_slice(line)?;
    let frame = match r#type.as_str() {
        "ready" => Frame::Ready,
        "loaded" => Frame::Loaded,
        "number_of_executions" => {
            let Count { execution_count } = serde_json::from_slice(line)?;
            Frame::NumberOfExecutions { execution_count }
        }
        "stdout" => Frame::Stdout { text: serde_json::from_slice::<Text>(line)?.text },
        "stderr" => Frame::Stderr { text: serde_json::from_slice::<Text>(line)?.text },
        "result" => Frame::Result(serde_json::from_slice(line)?),
        "error" => {
            let Exception { name, value, traceback } = serde_json::from_slice(line)?;
            Frame::Error { name, value, traceback }
        }
        "incomplete" => Frame::Incomplete,
        "end_of_execution" => Frame::EndOfExecution,
        _ => Frame::Other,
    };
    Ok((id, frame))
}

/// Id at the beginning of a line that cannot be read as a whole.
fn id_of(line: &[u8]) -> Option<u64> {
    // The kernel of a context writes the id first, spaced as Python's `json` does.
    let rest = line.strip_prefix(br#"{"id": "#)?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// Most bytes that a line takes while it is read and written again.
pub(super) fn cost(line: &[u8]) -> usize {
    let values = line.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    // Texts have commas, too, but short ones.
    3 * line.len() + if line.len() > SHORT { VALUE * values } else { 0 }
}

/// The failure of an interpreter that writes a line without an end.
pub(super) fn too_long() -> Failure {
    let detail = format!(
        "the interpreter of the context wrote a line of more than {LONGEST_LINE} bytes: restart the context"
    );
    Failure::new(ErrorKind::Unavailable, "context_broken", detail)
}

/// Lines out of pieces.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The line so far.
    line: Vec<u8>,
}

impl Frames {
    /// Takes a piece; gives the lines that are whole now, each with the number of the request that it belongs to. What is no line of
    /// an interpreter is left out. `charge` is asked for the bytes that a line takes before they are taken.
    pub(super) fn take(
        &mut self,
        mut piece: &[u8],
        mut charge: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Vec<(Option<u64>, Frame)>, Failure> {
        let mut found = Vec::new();
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            self.extend(&piece[..end])?;
            piece = &piece[end + 1..];
            let line = std::mem::take(&mut self.line);
            charge(cost(&line))?;
            match read(&line) {
                Ok(one) => found.push(one),
                Err(_) => found.extend(id_of(&line).map(|id| (Some(id), Frame::Unreadable))),
            }
        }
        // Twice: a vector that grows may hold room for as much again.
        charge(2 * (self.line.len() + piece.len()))?;
        self.extend(piece)?;
        Ok(found)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.line.len() + bytes.len() > LONGEST_LINE {
            return Err(too_long());
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_of_any_pieces_and_odd_ones_are_left_out() {
        let text = concat!(
            "rest of a line}\n",
            r#"{"id": 7, "type": "stdout", "text": "a"}"#,
            "\n\n[1]\n\u{1}\n",
            r#"{"id": -1, "type": "stdout", "text": "a"}"#,
            "\n",
            r#"{"id": 7, "type": "later", "x": [1, 2]}"#,
            "\n",
            r#"{"id": 7, "type": "result", "is_main_result": true, "text": "1", "json": {"a": [1]}}"#,
            "\n",
            r#"{"id": null, "type": "end_of_execution"}"#,
            "\n",
        );
        for size in [1, 7, text.len()] {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                found.extend(frames.take(piece, |_| Ok(())).unwrap());
            }
            let result = CodeResult {
                is_main_result: true,
                text: Some("1".to_owned()),
                json: Some(serde_json::json!({"a": [1]})),
                ..CodeResult::default()
            };
            let wanted = [
                (Some(7), Frame::Stdout { text: "a".to_owned() }),
                (Some(7), Frame::Other),
                (Some(7), Frame::Result(Box::new(result))),
                (None, Frame::EndOfExecution),
            ];
            assert_eq!(found, wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_and_charged_for_before_it_is_read() {
        let line = b"{\"id\": 7, \"type\": \"result\", \"json\": NaN}\n";
        let found = Frames::default().take(line, |_| Ok(())).unwrap();
        assert_eq!(found, [(Some(7), Frame::Unreadable)]);
        let values = "0,".repeat(1 << 20);
        let line = format!("{{\"id\": 7, \"type\": \"result\", \"json\": [{values}0]}}\n");
        let mut asked = 0;
        let refused = Frames::default().take(line.as_bytes(), |bytes| {
            asked = asked.max(bytes);
            Err(crate::charge::exhausted())
        });
        assert_eq!(refused.unwrap_err().0.code, "server_busy");
        assert!(asked > 64 << 20, "{asked}");
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut frames = Frames::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..20).find_map(|_| frames.take(&piece, |_| Ok(())).err()).unwrap();
        assert_eq!(refused.0.code, "context_broken");
        assert!(frames.line.len() <= LONGEST_LINE);
    }
}
