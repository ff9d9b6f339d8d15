//! One host after another on a stream that keeps no boundaries: each begins in the middle of the last frame of the one
//! before, in the same write.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use microvm_protocol::messages::{Firmware, PathStyle, Reply};
use microvm_protocol::{FrameKind, HEADER_LENGTH};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::{AsyncRead, AsyncWrite};

use super::host::{Host, encoded, greeting, open};
use crate::core::agent::Agent;
use crate::core::link::Link;
use crate::core::port::Boundaries;
use crate::platform::linux::port::DevicePort;
use crate::platform::linux::{Linux, Place};

/// A terminal without line discipline, both sides non-blocking: the main side and the agent's.
fn terminal() -> (OwnedFd, OwnedFd) {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let side = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
    let mut attributes = tcgetattr(&side).unwrap();
    attributes.make_raw();
    tcsetattr(&side, OptionalActions::Now, &attributes).unwrap();
    for descriptor in [&main, &side] {
        rustix::io::ioctl_fionbio(descriptor, true).unwrap();
    }
    (main, side)
}

/// The main side of a terminal as an asynchronous stream.
fn host_side(main: OwnedFd) -> impl AsyncRead + AsyncWrite + Unpin {
    let read = tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(main.try_clone().unwrap()).unwrap();
    let write = tokio::net::unix::pipe::Sender::from_owned_fd_unchecked(main).unwrap();
    tokio::io::join(read, write)
}

/// Runs hosts against an agent on `device`. `cut`: bytes of the old host's last frame that arrive.
async fn host_after_host(device: OwnedFd, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let agent = Arc::new(Agent::new(Linux::new(Place::Host)));
    let reaper = Arc::clone(&agent);
    let link = Link::new(Arc::clone(&agent), DevicePort::new(device, Boundaries::Lost).unwrap());
    let hosts = async {
        let mut host = Host::new(stream);
        host.send(&greeting(1)).await;
        host.greeted(1).await;
        let input = encoded(FrameKind::Data, 1, &[b'x'; 1000]);
        let cuts = (0..HEADER_LENGTH + 3).chain([40, 500, input.len() - 1, input.len()]);
        for (round, cut) in (1u64..).zip(cuts) {
            host.send(&open(1, &format!("command{round:013}"), "cat")).await;
            assert!(matches!(host.reply(1).await, Reply::Started(_)), "cut at {cut}");
            // The old host is gone within a frame, and the next one begins in the same write.
            let nonce = round + 1;
            host.send(&[&input[..cut], &greeting(nonce)].concat()).await;
            let reply = tokio::time::timeout(Duration::from_secs(20), host.greeted(nonce)).await;
            let reply = reply.expect("no answer to a host after half a frame");
            assert_eq!((reply.version, reply.path_style()), (1, PathStyle::Posix), "cut at {cut}");
            assert_ne!(reply.firmware(), Firmware::Untold);
        }
        host.send(&open(1, "commandforwholeoutpu", "echo whole")).await;
        host.send(&encoded(FrameKind::End, 1, &[])).await;
        assert_eq!(host.output(1).await, b"whole\n");
    };
    tokio::select! {
        result = crate::core::platform::Programs::report_ends(&reaper.platform) => panic!("{result:?}"),
        result = link.serve(false) => panic!("{result:?}"),
        () = hosts => {}
    }
}

#[tokio::test]
async fn a_host_begins_in_the_middle_of_a_frame_on_a_terminal() {
    let (main, side) = terminal();
    host_after_host(side, host_side(main)).await;
}

#[tokio::test]
async fn a_host_begins_in_the_middle_of_a_frame_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    let device = OwnedFd::from(theirs.unwrap().0.into_std().unwrap());
    host_after_host(device, ours.unwrap()).await;
}
