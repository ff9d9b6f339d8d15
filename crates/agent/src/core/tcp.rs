//! TCP connections to the guest's loopback.

use std::net::Ipv4Addr;

use bytes::BytesMut;
use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{Empty, Reply};
use microvm_protocol::mux::{Incoming, StreamHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::failure::{AgentError, AgentResult};

/// Connects a stream to a port and carries bytes both ways until both directions have ended.
pub(super) async fn connect(stream: &StreamHandle, port: u32) -> AgentResult<()> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| AgentError::invalid("ports are 1 to 65535"))?;
    let failed = |error| AgentError::io(format!("connect to port {port} in the guest"), &error);
    let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(failed)?;
    // Ports mostly carry small requests and answers, which must not wait for one another.
    connection.set_nodelay(true).map_err(failed)?;
    // Sent before any data: it tells the host that the port has a listener.
    stream.send_message(Reply::Done(Empty {})).await?;
    let (mut reader, mut writer) = connection.into_split();
    let outgoing = async {
        loop {
            let mut buffer = BytesMut::with_capacity(GUEST_BULK);
            if reader.read_buf(&mut buffer).await.map_err(failed)? == 0 {
                stream.end();
                return Ok::<(), AgentError>(());
            }
            stream.send_data(buffer.freeze()).await?;
        }
    };
    let incoming = async {
        while let Some(bytes) = stream.receive().await? {
            if let Incoming::Data(bytes) = bytes {
                writer.write_all(&bytes).await.map_err(failed)?;
            }
        }
        writer.shutdown().await.map_err(failed)
    };
    tokio::try_join!(outgoing, incoming)?;
    Ok(())
}
