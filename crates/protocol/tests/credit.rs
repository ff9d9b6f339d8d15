//! Credit that is given back, towards peers that do and do not read it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use bytes::Bytes;
use microvm_protocol::flow::{INITIAL_WINDOW, WIDE_WINDOW};
use microvm_protocol::messages::{Empty, FailureKind, Operation, Request, features};
use microvm_protocol::mux::{Incoming, MAX_WIDE, Mux, Role, StreamHandle, Violation};
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

/// The reset waits behind other output, or crosses what the peer sends: the peer breaks no rule by it.
#[tokio::test]
async fn what_crosses_a_reset_is_dropped() {
    let mux = Mux::new(Role::Agent);
    let request = Request { operation: Some(Operation::Health(Empty {})) };
    let open = Frame::new(FrameKind::Open, 1, prost::Message::encode_to_vec(&request).into());
    mux.receive(open).unwrap();
    let stream = mux.accept().await.unwrap().0;
    stream.fail(FailureKind::Invalid, "not like that");
    for _ in 0..100 {
        mux.receive(part(&stream)).unwrap();
    }
    mux.receive(Frame::new(FrameKind::End, 1, Bytes::new())).unwrap();
    let frames = output(&mux);
    assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [FrameKind::Reset]);
    // Gone, as for the peer.
    drop(stream);
    mux.receive(Frame::new(FrameKind::Data, 1, Bytes::from_static(b"late"))).unwrap();
}

/// After an end of its own the peer breaks one, whatever this side does.
#[tokio::test]
async fn data_after_an_end_is_a_violation_also_of_a_stream_that_is_given_up() {
    let mux = Mux::new(Role::Agent);
    let request = Request { operation: Some(Operation::Health(Empty {})) };
    mux.receive(Frame::new(FrameKind::Open, 1, prost::Message::encode_to_vec(&request).into())).unwrap();
    let stream = mux.accept().await.unwrap().0;
    mux.receive(Frame::new(FrameKind::End, 1, Bytes::new())).unwrap();
    stream.fail(FailureKind::Invalid, "not like that");
    let violation = Violation::AfterEnd { kind: FrameKind::Data, stream: 1 };
    assert_eq!(mux.receive(part(&stream)), Err(violation));
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

#[tokio::test(flavor = "current_thread")]
async fn a_widened_stream_takes_more_but_only_so_many_are() {
    let host = Mux::new(Role::Host);
    let request = Request { operation: Some(Operation::Health(Empty {})) };
    let opened: Vec<_> = (0..=MAX_WIDE).map(|_| host.open(&request).unwrap()).collect();
    let agent = Mux::with_features(Role::Agent, features::WIDE_WINDOWS);
    for frame in output(&host) {
        agent.receive(frame).unwrap();
    }
    let mut accepted = Vec::new();
    for _ in &opened {
        let (stream, _) = agent.accept().await.unwrap();
        stream.widen();
        stream.widen();
        accepted.push(stream);
    }
    let credit = output(&agent);
    assert_eq!(credit.len(), MAX_WIDE);
    for frame in credit {
        assert_eq!(*frame.payload, (WIDE_WINDOW - INITIAL_WINDOW).to_le_bytes());
        host.receive(frame).unwrap();
    }
    // Nothing is taken: the first stream has room for a wide window, the last for an ordinary one.
    for (stream, room) in [(&opened[0], WIDE_WINDOW), (&opened[MAX_WIDE], INITIAL_WINDOW)] {
        let mut sent = 0;
        while sent + part(stream).cost() <= room as usize {
            stream.send_data(Bytes::from(vec![1; PART])).await.unwrap();
            sent += part(stream).cost();
            for frame in output(&host) {
                agent.receive(frame).unwrap();
            }
        }
        let more = stream.send_data(Bytes::from(vec![1; PART]));
        assert!(tokio::time::timeout(Duration::from_millis(20), more).await.is_err());
        assert_eq!(agent.receive(part(stream)), Err(Violation::Window(stream.id())));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_host_that_does_not_know_wide_windows_gets_none() {
    let host = Mux::new(Role::Host);
    let _opened = host.open(&Request { operation: Some(Operation::Health(Empty {})) }).unwrap();
    let agent = Mux::with_features(Role::Agent, 0);
    for frame in output(&host) {
        agent.receive(frame).unwrap();
    }
    let (stream, _) = agent.accept().await.unwrap();
    stream.widen();
    assert_eq!(output(&agent), []);
}

#[test]
fn streams_opened_before_any_output_are_opened_in_order() {
    let (host, agent) = (Mux::new(Role::Host), Mux::new(Role::Agent));
    let request = Request { operation: Some(Operation::Health(Empty {})) };
    let opened = [(); 3].map(|()| host.open(&request).unwrap());
    let frames = output(&host);
    assert!(frames.iter().map(|frame| frame.stream).eq(opened.iter().map(StreamHandle::id)));
    for frame in frames {
        agent.receive(frame).unwrap();
    }
}
