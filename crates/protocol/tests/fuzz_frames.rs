//! Fuzzing of what the two ends of a channel make of bytes: frames, their multiplexer, and the bodies of control frames.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use microvm_fuzz::Fuzz;
use microvm_protocol::messages::{Configured, Failure, Hello, HelloReply, Message, Request};
use microvm_protocol::mux::{Mux, Role};
use microvm_protocol::{Decoder, Frame, FrameKind, HEADER_LENGTH, checksum};
use prost::Message as _;

/// Feeds bytes to both ends of a channel, cut in two at a place the bytes themselves choose.
fn frames(data: &[u8]) -> String {
    let Some((cut, bytes)) = data.split_first() else { return String::new() };
    let cut = usize::from(*cut).min(bytes.len());
    let (whole, end) = decode(&[bytes]);
    let (halves, _) = decode(&[&bytes[..cut], &bytes[cut..]]);
    assert_eq!(whole, halves, "the cut changes what is decoded");
    let mut again = Vec::new();
    for frame in &whole {
        frame.encode_into(&mut again);
    }
    assert!(bytes.starts_with(&again), "decoded frames encode to other bytes");
    let mut outcome = end;
    for role in [Role::Host, Role::Agent] {
        let mux = Mux::new(role);
        let streams: Vec<_> = (0..4).filter_map(|_| mux.open(&Request::default()).ok()).collect();
        for frame in &whole {
            if let Err(error) = mux.receive(frame.clone()) {
                outcome.push_str(&error.to_string());
                break;
            }
        }
        for stream in &streams {
            while let Ok(Some(Some(_))) = stream.try_receive() {}
        }
        drop(streams);
        mux.take_output(&mut Vec::new(), usize::MAX);
    }
    for frame in &whole {
        outcome.push_str(body(frame));
    }
    outcome
}

fn decode(parts: &[&[u8]]) -> (Vec<Frame>, String) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    let mut end = String::new();
    for part in parts {
        decoder.feed(part);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    end = error.to_string();
                    break;
                }
            }
        }
    }
    (frames, end)
}

/// A body that can be read means the same once it was written again.
fn body(frame: &Frame) -> &'static str {
    let bytes = &frame.payload[..];
    match frame.kind {
        FrameKind::Hello => again::<Hello>(bytes),
        FrameKind::HelloReply => again::<HelloReply>(bytes),
        FrameKind::Open => again::<Request>(bytes),
        FrameKind::Reset => again::<Failure>(bytes),
        FrameKind::Message => {
            again::<Configured>(bytes);
            again::<Message>(bytes)
        }
        _ => "",
    }
}

/// Compared as bytes, since a number that is none (NaN) differs from itself.
fn again<T: prost::Message + Default>(bytes: &[u8]) -> &'static str {
    let Ok(first) = T::decode(bytes) else { return "unreadable" };
    let written = first.encode_to_vec();
    let second = T::decode(&written[..]).expect("what we write can be read");
    assert_eq!(second.encode_to_vec(), written, "a body changes its meaning on the way");
    "readable"
}

/// Makes the check words of all whole frames right.
fn repair(data: &mut [u8]) {
    let bytes = data.get_mut(1..).unwrap_or_default();
    let mut at = 0;
    while bytes.len() - at >= HEADER_LENGTH {
        let header: [u8; 12] = bytes[at..at + 12].try_into().unwrap();
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let end = (at + HEADER_LENGTH).checked_add(length).filter(|end| *end <= bytes.len());
        let Some(end) = end else { return };
        let word = checksum::checksum(&header, &bytes[at + 16..end]);
        bytes[at + 12..at + 16].copy_from_slice(&word.to_le_bytes());
        at = end;
    }
}

#[test]
fn frames_of_a_hostile_end() {
    // Both ends may hold what their windows allow, whatever the input.
    Fuzz::new("frames").repair(repair).memory(8 << 20, 64).run(frames);
}

#[test]
fn bodies_of_a_hostile_end() {
    Fuzz::new("bodies")
        .seed(Hello { min_version: 1, max_version: 3, features: 1, nonce: 7, epoch: 2 }.encode_to_vec())
        .seed(HelloReply { version: 1, agent_version: "1".into(), ..HelloReply::default() }.encode_to_vec())
        .seed(Failure::default().encode_to_vec())
        .seed([0x0a, 3, 0x0a, 1, b'/', 0x12, 0])
        .run(|bytes| {
            let all = [
                again::<Hello>(bytes),
                again::<HelloReply>(bytes),
                again::<Request>(bytes),
                again::<Failure>(bytes),
                again::<Message>(bytes),
                again::<Configured>(bytes),
            ];
            all.concat()
        });
}
