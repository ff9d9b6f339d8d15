//! Commands over the exec WebSocket.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use microvm_api::exec::{ClientMessage, FRAME_MAX, ServerMessage, StreamByte};
use microvm_api::operation::Operation as _;
use microvm_api::operations::guest;
use microvm_api::queries::OpenShell;
use microvm_types::exec::{ExecRequest, ExitStatus, OutputOffsets, TerminalSize};
use microvm_types::{ProcessId, VmRef};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::client::Client;
use crate::error::ClientError;
use crate::websocket::{self, Socket};

/// Answer of the server when the process was started or found again.
#[derive(Debug, Clone)]
pub struct Started {
    /// Our id for the process.
    pub process: ProcessId,
    /// Its number in the guest.
    pub pid: u32,
    /// Offset of the first byte of standard output that will come.
    pub stdout_offset: u64,
    /// Offset of the first byte of standard error that will come.
    pub stderr_offset: u64,
}

/// Event of a process.
#[derive(Debug, Clone)]
pub enum ExecEvent {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// It ended; nothing comes after.
    Exited(ExitStatus),
    /// All that [`Client::read_output`] was asked for has come, and the process lives on; nothing comes after.
    UpToDate,
}

/// A running command. Dropping both halves detaches from it; it lives on.
#[derive(Debug)]
pub struct ExecSession {
    /// Identity of the process, and where its output begins.
    pub started: Started,
    /// Output and exit of the process.
    pub events: ExecStream,
    /// Input and signals of the process.
    pub writer: ExecWriter,
}

/// The receiving half.
#[derive(Debug)]
pub struct ExecStream(SplitStream<Socket>);

/// The sending half.
#[derive(Debug)]
pub struct ExecWriter(SplitSink<Socket, Message>);

impl Client {
    /// Starts a command.
    ///
    /// # Errors
    /// See [`ClientError`]; a command that cannot be started is a [`ClientError::Problem`].
    pub async fn exec(&self, vm: &VmRef, request: &ExecRequest) -> Result<ExecSession, ClientError> {
        self.session(vm, &ClientMessage::Start(request.clone())).await
    }

    /// Takes up the output of a process again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attach(
        &self,
        vm: &VmRef,
        process: &ProcessId,
        from: OutputOffsets,
    ) -> Result<ExecSession, ClientError> {
        let message = ClientMessage::Attach {
            process: process.clone(),
            stdout_offset: from.stdout,
            stderr_offset: from.stderr,
        };
        self.session(vm, &message).await
    }

    /// Looks at the output that is kept of a process, beside whoever takes it; with `follow` to the end of the process.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read_output(
        &self,
        vm: &VmRef,
        process: &ProcessId,
        from: OutputOffsets,
        follow: bool,
    ) -> Result<ExecSession, ClientError> {
        let (process, stdout_offset, stderr_offset) = (process.clone(), from.stdout, from.stderr);
        self.session(vm, &ClientMessage::Read { process, stdout_offset, stderr_offset, follow }).await
    }

    /// Opens the login shell of a user on a terminal. Dropping both halves hangs it up.
    ///
    /// # Errors
    /// See [`ClientError`]; a shell that cannot be started is a [`ClientError::Problem`].
    pub async fn shell(&self, vm: &VmRef, terminal: &OpenShell) -> Result<ExecSession, ClientError> {
        let (sink, stream) = self.open_with::<guest::Shell, _, _>(vm, terminal).await?.split();
        ExecStream(stream).begun(ExecWriter(sink)).await
    }

    async fn session(&self, vm: &VmRef, first: &ClientMessage) -> Result<ExecSession, ClientError> {
        let (sink, stream) = self.open::<guest::Exec, _, _>(vm).await?.split();
        let mut writer = ExecWriter(sink);
        writer.message(first).await?;
        ExecStream(stream).begun(writer).await
    }
}

fn lost(error: &tungstenite::Error) -> ClientError {
    websocket::lost(guest::Exec::NAME, error)
}

enum Received {
    Text(ServerMessage),
    Data(Bytes),
}

impl ExecStream {
    /// The session that the server announces in its first frame.
    async fn begun(mut self, writer: ExecWriter) -> Result<ExecSession, ClientError> {
        match self.message().await? {
            Received::Text(ServerMessage::Started { process, pid, stdout_offset, stderr_offset }) => {
                let started = Started { process, pid, stdout_offset, stderr_offset };
                Ok(ExecSession { started, events: self, writer })
            }
            Received::Text(ServerMessage::Error { problem }) => Err(ClientError::Problem(Box::new(problem))),
            _ => Err(ClientError::Answer("the process was not announced".to_owned())),
        }
    }

    async fn message(&mut self) -> Result<Received, ClientError> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => {
                    let message = serde_json::from_str(&text);
                    return message
                        .map(Received::Text)
                        .map_err(|error| ClientError::Answer(error.to_string()));
                }
                Some(Ok(Message::Binary(bytes))) => return Ok(Received::Data(bytes)),
                Some(Ok(Message::Close(_))) | None => {
                    let detail = "the server closed the stream".to_owned();
                    return Err(ClientError::Lost { action: "running a command", detail });
                }
                // Pings; the library answers them.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(&error)),
            }
        }
    }

    /// The next event. After [`ExecEvent::Exited`] there is none.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks; [`ClientError::Problem`] if the guest was lost.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        loop {
            match self.message().await? {
                Received::Text(ServerMessage::Exited(status)) => return Ok(ExecEvent::Exited(status)),
                Received::Text(ServerMessage::UpToDate) => return Ok(ExecEvent::UpToDate),
                Received::Text(ServerMessage::Error { problem }) => {
                    return Err(ClientError::Problem(Box::new(problem)));
                }
                // It was taken when the session began; a second one says nothing new.
                Received::Text(ServerMessage::Started { .. }) => {}
                Received::Data(mut bytes) if !bytes.is_empty() => {
                    let stream = bytes.split_to(1)[0];
                    if stream == StreamByte::Stdout as u8 {
                        return Ok(ExecEvent::Stdout(bytes));
                    }
                    if stream == StreamByte::Stderr as u8 {
                        return Ok(ExecEvent::Stderr(bytes));
                    }
                    return Err(ClientError::Answer(format!("data of an unknown stream {stream}")));
                }
                Received::Data(_) => {}
            }
        }
    }
}

impl ExecWriter {
    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.0.send(message).await.map_err(|error| lost(&error))
    }

    async fn message(&mut self, message: &ClientMessage) -> Result<(), ClientError> {
        let text = serde_json::to_string(message).map_err(|error| ClientError::Source(error.to_string()))?;
        self.send(Message::text(text)).await
    }

    /// Sends standard input; waits while the process does not read.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks.
    pub async fn stdin(&mut self, data: &[u8]) -> Result<(), ClientError> {
        for part in data.chunks(FRAME_MAX - 1) {
            let mut frame = BytesMut::with_capacity(part.len() + 1);
            frame.extend_from_slice(&[StreamByte::Stdin as u8]);
            frame.extend_from_slice(part);
            self.send(Message::Binary(frame.freeze())).await?;
        }
        Ok(())
    }

    /// No more standard input.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks.
    pub async fn close_stdin(&mut self) -> Result<(), ClientError> {
        self.message(&ClientMessage::StdinClosed).await
    }

    /// The terminal has a new size.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.message(&ClientMessage::Resize(size)).await
    }

    /// Sends a signal to the process group, behind the input sent so far.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks.
    pub async fn signal(&mut self, signal: u8) -> Result<(), ClientError> {
        self.message(&ClientMessage::Signal { signal }).await
    }
}
