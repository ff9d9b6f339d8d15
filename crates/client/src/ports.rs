//! TCP ports of guests.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use microvm_api::operation::{Operation as _, Port};
use microvm_api::operations::guest;
use microvm_types::VmRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::client::Client;
use crate::error::ClientError;
use crate::websocket::{self, Socket};

/// Bytes read at once from the local end.
const PART: usize = 64 * 1024;

/// A connection to a TCP port on a guest's loopback. Dropping it ends both directions.
#[derive(Debug)]
pub struct PortStream(Socket);

impl Client {
    /// Connects to a TCP port on the loopback of a guest.
    ///
    /// # Errors
    /// [`ClientError::Problem`] if the VM has no running guest or nothing listens there.
    pub async fn connect_port(&self, vm: &VmRef, port: u16) -> Result<PortStream, ClientError> {
        self.open::<guest::Connect, _, _>(&(vm.clone(), Port(port))).await.map(PortStream)
    }
}

impl PortStream {
    /// Carries bytes between the guest and a local stream until both directions have ended. Each direction ends by itself:
    /// the end of `reader` is told to the guest, and the guest's end shuts `writer` down.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the guest or the server was lost, [`ClientError::Source`] and [`ClientError::Output`] if
    /// the local stream broke. What the other side sent may then be incomplete, and it has to be told so.
    pub async fn join(
        self,
        mut reader: impl AsyncRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
    ) -> Result<(), ClientError> {
        let (mut sink, mut stream) = self.0.split();
        let to_guest = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PART);
                let length = reader
                    .read_buf(&mut buffer)
                    .await
                    .map_err(|error| ClientError::Source(error.to_string()))?;
                // An empty frame is the end of this direction.
                let part = if length == 0 { Bytes::new() } else { buffer.split().freeze() };
                sink.send(Message::Binary(part))
                    .await
                    .map_err(|error| websocket::lost(guest::Connect::NAME, &error))?;
                if length == 0 {
                    // The other direction ends the connection.
                    std::future::pending::<()>().await;
                }
            }
        };
        let from_guest = async {
            let lost = |detail: String| ClientError::Lost { action: guest::Connect::NAME, detail };
            let mut ended = false;
            loop {
                match stream.next().await {
                    Some(Ok(Message::Binary(bytes))) if bytes.is_empty() && !ended => {
                        ended = true;
                        writer.shutdown().await.map_err(ClientError::Output)?;
                    }
                    Some(Ok(Message::Binary(bytes))) => {
                        writer.write_all(&bytes).await.map_err(ClientError::Output)?;
                        // At once: programs at both ends wait for each other's answers.
                        writer.flush().await.map_err(ClientError::Output)?;
                    }
                    Some(Ok(Message::Close(frame))) => {
                        return match frame {
                            Some(frame) if frame.code != CloseCode::Normal => {
                                Err(lost(frame.reason.to_string()))
                            }
                            _ if ended => Ok(()),
                            _ => Err(lost("the server closed the stream".to_owned())),
                        };
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(websocket::lost(guest::Connect::NAME, &error)),
                    None => return Err(lost("the server is gone".to_owned())),
                }
            }
        };
        tokio::select! {
            outcome = to_guest => outcome,
            outcome = from_guest => outcome,
        }
    }
}
