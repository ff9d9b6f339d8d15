//! What every fuzzer of the channel checks, whoever makes the bytes up.

use microvm_protocol::messages::{Configured, Failure, Hello, HelloReply, Message, Request};
use microvm_protocol::mux::{Mux, Role};
use microvm_protocol::{Decoder, Frame, FrameKind};
use prost::Message as _;

/// Feeds bytes to both ends of a channel, cut in two at a place the bytes themselves choose, and checks that what comes
/// out does not depend on the cut, survives a round trip, and never needs more memory than was fed.
pub fn frames(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let cut = usize::from(*cut).min(bytes.len());
    let whole = decode(&[bytes]);
    let halves = decode(&[&bytes[..cut], &bytes[cut..]]);
    assert_eq!(whole, halves, "the cut changes what is decoded");
    let mut again = Vec::new();
    for frame in &whole {
        frame.encode_into(&mut again);
    }
    assert!(bytes.starts_with(&again), "decoded frames encode to other bytes");
    for role in [Role::Host, Role::Agent] {
        let mux = Mux::new(role);
        let streams: Vec<_> = (0..4).filter_map(|_| mux.open(&Request::default()).ok()).collect();
        for frame in &whole {
            if mux.receive(frame.clone()).is_err() {
                break;
            }
        }
        for stream in &streams {
            while let Ok(Some(Some(_))) = stream.try_receive() {}
        }
        drop(streams);
        mux.take_output(&mut Vec::new(), usize::MAX);
    }
    for frame in whole {
        body(&frame);
    }
}

fn decode(parts: &[&[u8]]) -> Vec<Frame> {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for part in parts {
        decoder.feed(part);
        while let Ok(Some(frame)) = decoder.next_frame() {
            frames.push(frame);
        }
    }
    frames
}

fn body(frame: &Frame) {
    let payload = frame.payload.clone();
    // Whether it can be read does not matter here, only that trying does no harm.
    match frame.kind {
        FrameKind::Hello => drop(Hello::decode(payload)),
        FrameKind::HelloReply => drop(HelloReply::decode(payload)),
        FrameKind::Open => drop(Request::decode(payload)),
        FrameKind::Reset => drop(Failure::decode(payload)),
        FrameKind::Message => {
            drop(Message::decode(payload.clone()));
            drop(Configured::decode(payload));
        }
        _ => {}
    }
}

/// Makes the check words of all whole frames in `bytes` right, so that mutations get past them.
pub fn repair(bytes: &mut [u8]) {
    let mut at = 0;
    while bytes.len() - at >= microvm_protocol::HEADER_LENGTH {
        let header: [u8; 12] = bytes[at..at + 12].try_into().expect("12 bytes");
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some(end) = (at + microvm_protocol::HEADER_LENGTH).checked_add(length).filter(|end| *end <= bytes.len())
        else {
            return;
        };
        let word = microvm_protocol::checksum::checksum(&header, &bytes[at + 16..end]);
        bytes[at + 12..at + 16].copy_from_slice(&word.to_le_bytes());
        at = end;
    }
}
