//! Credit that is given back, towards peers that do and do not read it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bytes::Bytes;
use microvm_protocol::flow::INITIAL_WINDOW;
use microvm_protocol::messages::{Empty, Operation, Request};
use microvm_protocol::mux::{Incoming, Mux, Role, StreamHandle, Violation};
use microvm_protocol::{Frame, FrameKind};

const PART: usize = 32 * 1024;

/// A host with one stream whose opening has left.
fn host() -> (Mux, StreamHandle) {
    let mux = Mux::new(Role::Host);
    let stream = mux.open(&Request { operation: Some(Operation::Health(Empty {})) }).unwrap();
    assert_eq!(output(&mux).len(), 1);
    (mux, stream)
}

fn output(mux: &Mux) -> Vec<Frame> {
    let mut frames = Vec::new();
    mux.take_output(&mut frames, usize::MAX);
    frames
}

fn part(stream: &StreamHandle) -> Frame {
    Frame::new(FrameKind::Data, stream.id(), Bytes::from(vec![1; PART]))
}

fn take(stream: &StreamHandle) {
    assert!(matches!(stream.try_receive(), Ok(Some(Some(Incoming::Data(_))))));
}

#[test]
fn a_peer_that_never_reads_its_credit_cannot_use_it_nor_make_it_pile_up() {
    let (mux, stream) = host();
    let mut received = 0;
    let violation = loop {
        match mux.receive(part(&stream)) {
            Ok(()) => received += PART,
            Err(violation) => break violation,
        }
        assert!(received <= INITIAL_WINDOW as usize, "more than the window came without any credit sent");
        take(&stream);
    };
    assert_eq!(violation, Violation::Window(stream.id()));
    assert_eq!(output(&mux).len(), 1, "all credit is one frame");
}

#[test]
fn a_peer_that_keeps_to_its_credit_goes_on_for_ever() {
    let (mux, stream) = host();
    let mut credit = INITIAL_WINDOW as usize;
    for _ in 0..10 {
        // All that is allowed comes and is taken before the next output.
        while credit >= part(&stream).cost() {
            credit -= part(&stream).cost();
            mux.receive(part(&stream)).unwrap();
            take(&stream);
        }
        let frames = output(&mux);
        assert_eq!(frames.len(), 1, "one frame however much it is");
        assert_eq!((frames[0].kind, frames[0].stream), (FrameKind::Credit, stream.id()));
        credit += u32::from_le_bytes(*frames[0].payload.first_chunk().unwrap()) as usize;
        assert!(credit > INITIAL_WINDOW as usize / 2 && credit <= INITIAL_WINDOW as usize);
    }
}

#[test]
fn streams_that_ended_or_went_give_nothing_back() {
    let (mux, stream) = host();
    let fill = || {
        for _ in 0..INITIAL_WINDOW as usize / PART / 2 {
            mux.receive(part(&stream)).unwrap();
            take(&stream);
        }
    };
    fill();
    mux.receive(Frame::new(FrameKind::End, stream.id(), Bytes::new())).unwrap();
    assert!(output(&mux).is_empty());
    drop(stream);
    assert_eq!(output(&mux).iter().map(|frame| frame.kind).collect::<Vec<_>>(), [FrameKind::Reset]);
}
