//! Lines of an interpreter. They are the guest's word: long ones are refused, odd ones left out.

use microvm_api::context::CodeResult;
use microvm_types::ErrorKind;
use serde::Deserialize;

use crate::failure::Failure;

/// Longest line in bytes: twice what our interpreter writes at most.
const LONGEST_LINE: usize = 12 << 20;

/// One line of an interpreter.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Frame {
    /// It takes requests.
    Ready,
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
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Numbered {
    id: Option<u64>,
    #[serde(flatten)]
    frame: Frame,
}

/// Lines out of pieces.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The line so far.
    line: Vec<u8>,
}

impl Frames {
    /// Takes a piece; gives the lines that are whole now, each with the number of the request that it belongs to. What is no line of
    /// an interpreter is left out.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> Result<Vec<(Option<u64>, Frame)>, Failure> {
        let mut found = Vec::new();
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            self.extend(&piece[..end])?;
            piece = &piece[end + 1..];
            let line = std::mem::take(&mut self.line);
            if let Ok(Numbered { id, frame }) = serde_json::from_slice(&line) {
                found.push((id, frame));
            }
        }
        self.extend(piece)?;
        Ok(found)
    }

    /// Bytes that are kept of a line that is not whole.
    pub(super) fn held(&self) -> usize {
        self.line.len()
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.line.len() + bytes.len() > LONGEST_LINE {
            let detail = format!(
                "the interpreter of the context wrote a line of more than {LONGEST_LINE} bytes: restart the context"
            );
            return Err(Failure::new(ErrorKind::Unavailable, "context_broken", detail));
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
                found.extend(frames.take(piece).unwrap());
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
    fn a_line_without_an_end_is_refused() {
        let mut frames = Frames::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..20).find_map(|_| frames.take(&piece).err()).unwrap();
        assert_eq!(refused.0.code, "context_broken");
        assert!(frames.held() <= LONGEST_LINE);
    }
}
