//! Output of a command, kept while it runs and written into its answer piece by piece: never held twice, and never
//! held as JSON, which may be six times as long.

use std::convert::Infallible;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use microvm_api::exec::Executed;
use microvm_api::operation::Json;
use microvm_api::output::{COLLECTED_MAX, Omitted};

use crate::charge::Charge;
use crate::reply::Reply;

/// Bytes of output that are kept, charged and written together: whole groups of base64.
const PIECE: usize = 48 << 10;

/// One output of a command: its beginning, without gaps, as far as there is room, and how many bytes are missing.
#[derive(Debug)]
pub(crate) struct Output {
    /// All but the last are full.
    pieces: Vec<Vec<u8>>,
    length: usize,
    charge: Charge,
    omitted: u64,
}

impl Output {
    pub(crate) fn charged_to(charge: &Charge) -> Self {
        Self { pieces: Vec::new(), length: 0, charge: charge.clone(), omitted: 0 }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        // Whatever comes after a gap is left out too.
        let room = if self.omitted > 0 { 0 } else { COLLECTED_MAX - self.length };
        let mut rest = &bytes[..bytes.len().min(room)];
        self.omitted += (bytes.len() - rest.len()) as u64;
        while !rest.is_empty() {
            let Some(piece) = self.pieces.last_mut().filter(|piece| piece.len() < PIECE) else {
                if !self.charge.grow(PIECE) {
                    self.omitted += rest.len() as u64;
                    return;
                }
                self.pieces.push(Vec::with_capacity(PIECE));
                continue;
            };
            let (now, later) = rest.split_at(rest.len().min(PIECE - piece.len()));
            piece.extend_from_slice(now);
            self.length += now.len();
            rest = later;
        }
    }

    fn finish(mut self) -> Finished {
        let (mut text, mut rest) = (true, Vec::new());
        for piece in &self.pieces {
            rest.extend_from_slice(piece);
            let whole = rest.len() - begun(&rest);
            text &= std::str::from_utf8(&rest[..whole]).is_ok();
            rest.drain(..whole);
        }
        // A character that the limit cut in two is left out whole: it does not make text bytes.
        let cut =
            self.omitted > 0 && std::str::from_utf8(&rest).is_err_and(|error| error.error_len().is_none());
        if text && cut {
            self.omitted += rest.len() as u64;
            self.shorten(rest.len());
            rest.clear();
        }
        let pieces = self.pieces.into_iter().map(Bytes::from).collect();
        Finished { pieces, is_text: text && rest.is_empty(), omitted: self.omitted }
    }

    fn shorten(&mut self, mut bytes: usize) {
        while let Some(last) = self.pieces.last_mut().filter(|_| bytes > 0) {
            let now = bytes.min(last.len());
            last.truncate(last.len() - now);
            bytes -= now;
            if last.is_empty() {
                self.pieces.pop();
            }
        }
    }
}

/// An output that is complete.
struct Finished {
    pieces: Vec<Bytes>,
    is_text: bool,
    omitted: u64,
}

impl Finished {
    /// Two fields of JSON, the second only where the first is not exact, with a comma before each.
    fn fields(self, name: &str) -> impl Iterator<Item = Bytes> + Send + use<> {
        let text = quoted(format!(",\"{name}\":\""), escaped(self.pieces.clone()));
        let exact = (!self.is_text).then(|| {
            let pieces = self.pieces.into_iter().map(|piece| Bytes::from(STANDARD.encode(piece)));
            quoted(format!(",\"{name}_base64\":\""), pieces)
        });
        text.chain(exact.into_iter().flatten())
    }
}

fn quoted(head: String, inside: impl Iterator<Item = Bytes> + Send) -> impl Iterator<Item = Bytes> + Send {
    std::iter::once(Bytes::from(head)).chain(inside).chain(std::iter::once(Bytes::from_static(b"\"")))
}

/// Bytes as the inside of a JSON string; what is no UTF-8 becomes U+FFFD.
fn escaped(pieces: Vec<Bytes>) -> impl Iterator<Item = Bytes> + Send {
    let (mut pieces, mut rest) = (pieces.into_iter(), Vec::new());
    std::iter::from_fn(move || match pieces.next() {
        Some(piece) => {
            rest.extend_from_slice(&piece);
            let whole = rest.len() - begun(&rest);
            let text = escape(&rest[..whole]);
            rest.drain(..whole);
            Some(text)
        }
        None if rest.is_empty() => None,
        None => Some(escape(&std::mem::take(&mut rest))),
    })
}

/// The number of bytes at the end of `bytes` that are the beginning of a character.
fn begun(bytes: &[u8]) -> usize {
    // A character has four bytes at most, so an unfinished one began among the last three.
    let tail = bytes.iter().rev().take(3).enumerate();
    let leads = tail.filter(|(_, byte)| **byte >= 0xc0).map(|(after, byte)| {
        let length = if *byte >= 0xf0 { 4 } else { 2 + usize::from(*byte >= 0xe0) };
        if after + 1 < length { after + 1 } else { 0 }
    });
    leads.take(1).sum()
}

fn escape(bytes: &[u8]) -> Bytes {
    let quoted = serde_json::Value::from(String::from_utf8_lossy(bytes)).to_string();
    let inside = 1..quoted.len() - 1;
    Bytes::from(quoted).slice(inside)
}

/// The answer: `done` with its outputs in it, which it does not hold itself; `rest` says where what is left out can be had.
pub(crate) fn answer(
    mut done: Executed,
    stdout: Output,
    stderr: Output,
    rest: &str,
) -> Reply<Json<Executed>> {
    let (stdout, stderr) = (stdout.finish(), stderr.finish());
    done.truncated = stdout.omitted + stderr.omitted > 0;
    let (stdout_bytes, stderr_bytes) = (stdout.omitted, stderr.omitted);
    done.omitted = done.truncated.then(|| Omitted { stdout_bytes, stderr_bytes, rest: rest.to_owned() });
    let mut head = serde_json::to_value(done).unwrap_or_default();
    if let Some(fields) = head.as_object_mut() {
        // They are written behind the other fields, piece by piece.
        fields.remove("stdout");
        fields.remove("stderr");
    }
    let mut head = head.to_string();
    // The closing brace comes back after the outputs.
    head.truncate(head.len().saturating_sub(1));
    let text = std::iter::once(Bytes::from(head))
        .chain(stdout.fields("stdout"))
        .chain(stderr.fields("stderr"))
        .chain(std::iter::once(Bytes::from_static(b"}")));
    let body = Body::from_stream(futures_util::stream::iter(text.map(Ok::<_, Infallible>)));
    Reply::written(body)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use microvm_api::output::{Collected, Outputs};

    use super::*;
    use crate::caller::Peer;
    use crate::share::Budget;

    fn executed(outputs: Outputs) -> Executed {
        let Outputs { stdout, stderr, stdout_base64, stderr_base64, truncated, omitted } = outputs;
        Executed {
            success: true,
            exit_code: 0,
            stdout,
            stderr,
            stdout_base64,
            stderr_base64,
            truncated,
            omitted,
            process: "00000000000000000000".parse().unwrap(),
            execution_time_ms: 1,
            duration_seconds: std::time::Duration::from_millis(1).into(),
            error: None,
            timestamp: "now".to_owned(),
        }
    }

    /// Bytes read from an answer with these outputs.
    async fn read(stdout: Output, stderr: Output) -> Executed {
        let response = answer(executed(Outputs::default()), stdout, stderr, "here");
        let body = response.into_response().into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_arrives_as_if_it_had_been_collected_whole() {
        let budget = Budget::of(1 << 30);
        let charge = Charge::of(&budget, Peer(None)).unwrap();
        let text = "a\u{e9}\u{20ac}\u{1f600}\0\"\\";
        // Characters of one to four bytes lie across every border of pieces; then bytes that are none, and half a character.
        for odd in [&b""[..], b"\xff", b"\xe2\x82", b"\xe2(", b"\xf0\x9f\x98"] {
            let unit: Vec<u8> = [text.as_bytes(), odd].concat();
            for (unit, tail) in [(&unit[..], &b""[..]), (text.as_bytes(), odd)] {
                let mut bytes: Vec<u8> = unit.iter().copied().cycle().take(3 * PIECE + 7).collect();
                bytes.extend_from_slice(tail);
                let mut whole = Collected::default();
                whole.add(&bytes);
                let wanted = executed(Outputs::new(whole, Collected::default(), "here"));
                for step in [7, PIECE, PIECE + 1, bytes.len()] {
                    let mut output = Output::charged_to(&charge);
                    bytes.chunks(step).for_each(|part| output.add(part));
                    let read = read(output, Output::charged_to(&charge)).await;
                    assert!(read == wanted, "{odd:?} in steps of {step}");
                }
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_that_is_cut_is_counted_and_ends_with_a_whole_character() {
        let budget = Budget::of(1 << 30);
        let charge = Charge::of(&budget, Peer(None)).unwrap();
        for (first, second) in [(0, "x"), (1, "\u{ef}"), (2, "\u{20ac}"), (3, "\u{1f600}"), (1, "\u{1f600}")]
        {
            let bytes =
                [vec![b'x'; COLLECTED_MAX - first], second.as_bytes().to_vec(), vec![b'y'; 10]].concat();
            let (mut output, mut whole) = (Output::charged_to(&charge), Collected::default());
            output.add(&bytes);
            whole.add(&bytes);
            let read = read(Output::charged_to(&charge), output).await;
            assert!(read == executed(Outputs::new(Collected::default(), whole, "here")), "{second}");
            assert!(read.truncated);
        }
    }

    #[test]
    fn output_is_bounded_by_its_length_and_by_the_budget() {
        let budget = Budget::of(1 << 30);
        let mut output = Output::charged_to(&Charge::of(&budget, Peer(None)).unwrap());
        for _ in 0..3 {
            output.add(&vec![b'x'; COLLECTED_MAX / 2]);
        }
        assert_eq!((output.omitted, output.length), (COLLECTED_MAX as u64 / 2, COLLECTED_MAX));
        assert_eq!(budget.taken(), COLLECTED_MAX.next_multiple_of(PIECE) as u64);
        drop(output);
        assert_eq!(budget.taken(), 0);
        let small = Budget::of(4 * PIECE as u64);
        let mut output = Output::charged_to(&Charge::of(&small, Peer(None)).unwrap());
        output.add(&vec![b'x'; 10 * PIECE]);
        output.add(b"later");
        assert_eq!(output.pieces.len(), 2, "half of the budget");
        assert_eq!(output.omitted, (8 * PIECE + "later".len()) as u64);
    }
}
