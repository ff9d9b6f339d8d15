//! Commands over a WebSocket. The messages are described in `docs/rest.md`.
//!
//! Nothing is buffered beyond one frame in each direction: a slow reader holds the guest up, a process that does not
//! read holds the sender up. A caller who goes away detaches; the process lives on.

use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use microvm_api::exec::{ClientMessage, FRAME_MAX, LOGIN_SHELL, ServerMessage, StreamByte};
use microvm_api::meant::with_meant;
use microvm_api::operation::Socket;
use microvm_api::operations::guest;
use microvm_core::GuestLease;
use microvm_ports::guest::{ProcessEvent, ProcessEvents, ProcessHandle, ProcessInput, ProcessWriter};
use microvm_types::exec::{ExecRequest, OutputOffsets, TerminalSize};
use microvm_types::{ErrorKind, VmRef};

use crate::call::Call;
use crate::charge::Charge;
use crate::failure::Failure;
use crate::handlers::command::{check, check_written};
use crate::handlers::processes::check_signal;
use crate::limits::{INPUT, OUTGOING};
use crate::reply::Reply;
use crate::session::Session;

/// Time for a caller to send its request.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Number of the signal of a terminal that is closed.
const SIGHUP: u8 = 1;

/// Interval of checks of a silent connection for a caller that went away.
const PING: Duration = Duration::from_secs(15);

/// Time for a caller to close its side after the end.
const FAREWELL: Duration = Duration::from_secs(5);

type Sink = SplitSink<WebSocket, Message>;

pub(crate) async fn exec(
    app: Session,
    Call { path: vm, body: request, charge, .. }: Call<guest::Exec>,
) -> Result<Reply<Socket<ClientMessage, ServerMessage>>, Failure> {
    charge.hold(OUTGOING + INPUT)?;
    let guest = app.guest(&vm).await?;
    Ok(Reply::socket(request, move |socket| serve(app, vm, guest, Begin::AsAsked, socket, charge)))
}

/// The login shell of a user on a terminal.
pub(crate) async fn shell(
    app: Session,
    Call { path: vm, query, body: request, charge, .. }: Call<guest::Shell>,
) -> Result<Reply<Socket<ClientMessage, ServerMessage>>, Failure> {
    let usual = TerminalSize::default();
    let size = TerminalSize {
        columns: query.columns.unwrap_or(usual.columns),
        rows: query.rows.unwrap_or(usual.rows),
    };
    if size.columns == 0 || size.rows == 0 {
        return Err(Failure::invalid("query_invalid", "columns, rows: a terminal has at least one of each"));
    }
    let term = query.term.unwrap_or_else(|| "xterm-256color".to_owned());
    let shell = ExecRequest {
        command: LOGIN_SHELL.map(str::to_owned).to_vec(),
        environment: [("TERM".to_owned(), term)].into(),
        working_directory: query.working_dir,
        user: query.user,
        terminal: Some(size),
        stdin: true,
        ..ExecRequest::default()
    };
    check(&shell, &app.bounds)?;
    charge.hold(OUTGOING + INPUT)?;
    let guest = app.guest(&vm).await?;
    Ok(Reply::socket(request, move |socket| serve(app, vm, guest, Begin::Shell(shell), socket, charge)))
}

/// What a connection begins with.
enum Begin {
    /// What its first frame asks for.
    AsAsked,
    /// This shell, which ends with the connection.
    Shell(ExecRequest),
}

async fn serve(app: Session, vm: VmRef, guest: GuestLease, begin: Begin, socket: WebSocket, charge: Charge) {
    let (mut sink, mut stream) = socket.split();
    let ending = app.ending.clone();
    let outcome = tokio::select! {
        outcome = session(&app, &vm, &guest, begin, &mut sink, &mut stream) => outcome,
        () = ending.cancelled() => Err(Failure::new(
            ErrorKind::Unavailable,
            "shutting_down",
            "the server is shutting down; the process lives on, attach to it again",
        )),
    };
    if let Err(failure) = outcome {
        // A caller who went away does not hear it.
        let _ = send(&mut sink, &ServerMessage::Error { problem: *failure.0 }).await;
    }
    // The caller closes first: were the socket closed while it still sends (input, a pong), its write would fail
    // and it would never read the exit that waits for it.
    let farewell = async {
        let _ = sink.close().await;
        while let Some(Ok(_)) = stream.next().await {}
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    drop(charge);
}

async fn session(
    app: &Session,
    vm: &VmRef,
    guest: &GuestLease,
    begin: Begin,
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
) -> Result<(), Failure> {
    if let Begin::Shell(request) = begin {
        let process = guest.exec(&request).await?;
        let id = process.id.clone();
        let outcome = attended(vm, process, sink, stream).await;
        if !matches!(outcome, Ok(End::OfProcess)) {
            // Nobody can find it again, as nobody finds what ran in a closed terminal.
            if let Err(error) = guest.signal(&id, SIGHUP).await {
                tracing::debug!(%vm, %error, "a shell was not hung up");
            }
        }
        return outcome.map(drop);
    }
    let first = tokio::time::timeout(FIRST_MESSAGE, stream.next()).await;
    let Ok(Some(Ok(Message::Text(text)))) = first else {
        return Err(unexpected("the first frame must be a text frame with `start`, `attach` or `read`"));
    };
    let process = open(app, guest, &text).await?;
    attended(vm, process, sink, stream).await.map(drop)
}

/// End of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process ended, or all that was asked for was sent.
    OfProcess,
    /// The caller went away.
    OfCaller,
}

/// Ties a process to a caller until one of them ends.
async fn attended(
    vm: &VmRef,
    process: ProcessHandle,
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
) -> Result<End, Failure> {
    tracing::debug!(%vm, process = %process.id, pid = process.pid, "a process is attached");
    let started = ServerMessage::Started {
        process: process.id,
        pid: process.pid,
        stdout_offset: process.stdout_offset,
        stderr_offset: process.stderr_offset,
    };
    if send(sink, &started).await.is_err() {
        return Ok(End::OfCaller);
    }
    // Whichever ends first ends both: an exit needs no more input, and a caller who went away no more output.
    tokio::select! {
        outcome = output(sink, process.events) => outcome,
        outcome = input(stream, &*process.input) => outcome.map(|()| End::OfCaller),
    }
}

async fn open(app: &Session, guest: &GuestLease, text: &str) -> Result<ProcessHandle, Failure> {
    match serde_json::from_str(text) {
        Ok(ClientMessage::Start(request)) => {
            check_written(&request, &app.bounds)?;
            Ok(guest.exec(&request).await?)
        }
        Ok(ClientMessage::Attach { process, stdout_offset, stderr_offset }) => {
            let from = OutputOffsets { stdout: stdout_offset, stderr: stderr_offset };
            Ok(guest.attach(&process, from).await?)
        }
        Ok(ClientMessage::Read { process, stdout_offset, stderr_offset, follow }) => {
            let from = OutputOffsets { stdout: stdout_offset, stderr: stderr_offset };
            Ok(guest.read_output(&process, from, follow).await?)
        }
        Ok(_) => Err(unexpected("the first frame must be `start`, `attach` or `read`")),
        Err(error) => Err(unexpected(&with_meant(error.to_string()))),
    }
}

/// Carries output until the process ends. An error of the socket means that the caller went away.
async fn output(sink: &mut Sink, mut events: ProcessEvents) -> Result<End, Failure> {
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = ping.tick() => {
                if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                    return Ok(End::OfCaller);
                }
                continue;
            }
        };
        let sent = match event {
            Some(ProcessEvent::Stdout(bytes)) => data(sink, StreamByte::Stdout, &bytes).await,
            Some(ProcessEvent::Stderr(bytes)) => data(sink, StreamByte::Stderr, &bytes).await,
            Some(ProcessEvent::Exited(status)) => {
                // A caller who went away does not hear it.
                let _ = send(sink, &ServerMessage::Exited(status)).await;
                return Ok(End::OfProcess);
            }
            Some(ProcessEvent::UpToDate) => {
                let _ = send(sink, &ServerMessage::UpToDate).await;
                return Ok(End::OfProcess);
            }
            Some(ProcessEvent::Lost(error)) => return Err(error.into()),
            None => return Err(ended_without_status()),
        };
        if sent.is_err() {
            return Ok(End::OfCaller);
        }
    }
}

/// Carries input until the caller goes away. A broken rule ends the session, not the process.
async fn input(stream: &mut SplitStream<WebSocket>, process: &dyn ProcessWriter) -> Result<(), Failure> {
    while let Some(Ok(message)) = stream.next().await {
        let input = match message {
            Message::Binary(mut bytes) => {
                if bytes.first() != Some(&(StreamByte::Stdin as u8)) {
                    return Err(unexpected("a binary frame from a client must begin with byte 0"));
                }
                ProcessInput::Stdin(bytes.split_off(1))
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ClientMessage::StdinClosed) => ProcessInput::CloseStdin,
                Ok(ClientMessage::Resize(size)) => ProcessInput::Resize(size),
                Ok(ClientMessage::Signal { signal }) => {
                    check_signal(signal)?;
                    ProcessInput::Signal(signal)
                }
                Ok(ClientMessage::Start(_) | ClientMessage::Attach { .. } | ClientMessage::Read { .. }) => {
                    return Err(unexpected("this connection has its process already: open another one"));
                }
                Err(error) => return Err(unexpected(&error.to_string())),
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => break,
        };
        process.send(input).await?;
    }
    Ok(())
}

async fn data(sink: &mut Sink, stream: StreamByte, bytes: &[u8]) -> Result<(), axum::Error> {
    for part in bytes.chunks(FRAME_MAX - 1) {
        let mut frame = BytesMut::with_capacity(part.len() + 1);
        frame.extend_from_slice(&[stream as u8]);
        frame.extend_from_slice(part);
        sink.send(Message::Binary(frame.freeze())).await?;
    }
    Ok(())
}

async fn send(sink: &mut Sink, message: &ServerMessage) -> Result<(), axum::Error> {
    let text = serde_json::to_string(message).map_err(axum::Error::new)?;
    sink.send(Message::Text(Utf8Bytes::from(text))).await
}

fn unexpected(what: &str) -> Failure {
    Failure::invalid("message_unexpected", format!("the message cannot be understood: {what}"))
}

/// The stream of a process ended without saying how the process did.
pub(crate) fn ended_without_status() -> Failure {
    let detail = "the guest stopped reporting on the process without saying how it ended: attach to it again";
    Failure::new(ErrorKind::Unavailable, "process_lost", detail)
}
