//! The first frames of a session.

use microvm_ports::GuestError;
use microvm_protocol::messages::{self, Hello, HelloReply, features};
use microvm_protocol::{Decoder, Frame, FrameKind, PREAMBLE, PROTOCOL_VERSION};
use microvm_types::guest::{AgentInfo, Firmware};
use microvm_types::{ErrorKind, PathStyle};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::sanitize::clean;

/// Most bytes that may come before the reply: what an older session left in the devices' queues is less.
const MOST_GARBAGE: usize = 8 * 1024 * 1024;

/// Greets the agent and waits for its answer, without a limit of time: the caller has one. Returns what it said of
/// itself, its optional abilities, and what came after it.
pub(crate) async fn greet(
    socket: &mut UnixStream,
    epoch: u64,
) -> Result<(AgentInfo, u64, Decoder), GuestError> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce)
        .map_err(|error| GuestError::Unreachable(format!("no random numbers: {error}")))?;
    let nonce = u64::from_le_bytes(nonce);
    let features = features::WIDE_WINDOWS;
    let hello =
        Hello { min_version: PROTOCOL_VERSION, max_version: PROTOCOL_VERSION, features, nonce, epoch };
    // One write: the agent looks for the mark at the beginning of what it reads.
    let mut greeting = PREAMBLE.to_vec();
    Frame::new(FrameKind::Hello, 0, hello.encode_to_vec().into()).encode_into(&mut greeting);
    let failed = |error: std::io::Error| GuestError::Unreachable(format!("the channel broke: {error}"));
    socket.write_all(&greeting).await.map_err(failed)?;

    let mut decoder = Decoder::new();
    let mut garbage = 0;
    let mut found = false;
    loop {
        if !found {
            let bytes = decoder.peek();
            if let Some(end) = microvm_protocol::preamble::find_end(bytes) {
                decoder.skip(end);
                found = true;
            } else {
                // The mark may begin in the last bytes and end in those to come.
                let surplus = bytes.len() - bytes.len().min(PREAMBLE.len() - 1);
                garbage += surplus;
                decoder.skip(surplus);
            }
        }
        if garbage > MOST_GARBAGE {
            return Err(GuestError::Protocol(
                "the guest talks without ever answering the greeting".to_owned(),
            ));
        }
        if found {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Some((info, features)) = answer(&frame, nonce, epoch)? {
                        return Ok((info, features, decoder));
                    }
                    // An answer to somebody before us: ours is still to come.
                    found = false;
                    continue;
                }
                Ok(None) => {}
                Err(error) => return Err(GuestError::Protocol(format!("in the handshake: {error}"))),
            }
        }
        if socket.read_buf(decoder.buffer()).await.map_err(failed)? == 0 {
            return Err(GuestError::Unreachable(
                "the machine closed the channel during the handshake".to_owned(),
            ));
        }
    }
}

fn answer(frame: &Frame, nonce: u64, epoch: u64) -> Result<Option<(AgentInfo, u64)>, GuestError> {
    if frame.kind != FrameKind::HelloReply {
        return Err(GuestError::Protocol(format!("the guest answers the greeting with {:?}", frame.kind)));
    }
    let reply = HelloReply::decode(frame.payload.clone())
        .map_err(|_| GuestError::Protocol("the answer to the greeting cannot be read".to_owned()))?;
    if reply.nonce != nonce {
        return Ok(None);
    }
    if reply.version != PROTOCOL_VERSION {
        return Err(GuestError::Refused {
            kind: ErrorKind::Unsupported,
            message: format!(
                "the guest's agent ({}) does not speak version {PROTOCOL_VERSION} of the protocol: start the VM anew",
                clean(&reply.agent_version)
            ),
        });
    }
    if reply.epoch > epoch {
        return Err(GuestError::Refused {
            kind: ErrorKind::Conflict,
            message: format!("the guest is in epoch {} already: {epoch} is over", reply.epoch),
        });
    }
    let info = AgentInfo {
        agent_version: clean(&reply.agent_version),
        kernel_release: clean(&reply.kernel_release),
        boot_ms: reply.boot_ms,
        // A number of a newer version is taken for the default.
        path_style: match reply.path_style() {
            messages::PathStyle::Posix => PathStyle::Posix,
            messages::PathStyle::Windows => PathStyle::Windows,
        },
        firmware: match reply.firmware() {
            messages::Firmware::Untold => None,
            messages::Firmware::None => Some(Firmware::None),
            messages::Firmware::Uefi => Some(Firmware::Uefi),
        },
    };
    Ok(Some((info, reply.features)))
}
