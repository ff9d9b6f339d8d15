//! A command in a guest with our standard streams.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use bytes::Bytes;
use microvm_api::output::{Collected, Outputs};
use microvm_client::{Client, ExecEvent, ExecSession, ExecStream, ExecWriter, Started};
use microvm_types::exec::ExitStatus;
use microvm_types::{ErrorKind, ProcessId, VmRef};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::detach::{DetachKeys, Detector};
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::terminal::{self, RawTerminal};

/// Bytes of standard input read at once.
const INPUT_PART: usize = 64 * 1024;

/// Time a command has to end after a signal of ours that it was sent, as `docker stop` gives.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Both outputs of a command, if they were collected.
#[derive(Debug, Default)]
pub(crate) struct Both {
    stdout: Collected,
    stderr: Collected,
}

impl Both {
    /// As JSON carries them. What is left out is said on standard error too; `rest` says where it can be had.
    pub(crate) fn outputs(self, rest: &str) -> Outputs {
        let outputs = Outputs::new(self.stdout, self.stderr, rest);
        if let Some(omitted) = &outputs.omitted {
            say(&omitted.to_string());
        }
        outputs
    }
}

/// How the streams are connected.
#[derive(Debug, Clone)]
pub(crate) struct Wiring {
    /// Our standard input goes to the command.
    pub(crate) stdin: bool,
    /// Our terminal is its terminal.
    pub(crate) terminal: bool,
    /// Its output is collected instead of printed.
    pub(crate) collect: bool,
    /// Keys that detach from a terminal.
    pub(crate) detach_keys: Option<DetachKeys>,
}

/// Connects our streams to the command's until it ends.
pub(crate) async fn stream(
    client: &Client,
    vm: &VmRef,
    session: ExecSession,
    wiring: Wiring,
    interrupts: &mut Interrupts,
) -> Result<(ExitStatus, Both), CliError> {
    let raw = if wiring.terminal { Some(RawTerminal::enter()?) } else { None };
    let ExecSession { started, events, writer } = session;
    let mut collected = Both::default();
    let collect = wiring.collect;
    missing(&started, collect.then_some(&mut collected));
    let status = tokio::select! {
        status = output(events, collect.then_some(&mut collected)) => status,
        never = input(writer, wiring) => match never? {},
        signal = pass_on(client, vm, &started.process, interrupts) => Err(CliError::Interrupted(signal)),
    };
    drop(raw);
    Ok((status?, collected))
}

/// Collects a command's output until it ends; it gets no input.
pub(crate) async fn collect(session: ExecSession) -> Result<(ExitStatus, Both), CliError> {
    let ExecSession { events, writer: _open, .. } = session;
    let mut collected = Both::default();
    let status = output(events, Some(&mut collected)).await?;
    Ok((status, collected))
}

async fn output(events: ExecStream, collected: Option<&mut Both>) -> Result<ExitStatus, CliError> {
    // That it is up to date is said only to whoever asked for less than all.
    until_told(events, collected).await?.ok_or_else(vanished)
}

/// The output of a process ended, and nothing says how the process did.
pub(crate) fn vanished() -> CliError {
    let detail = "the server ended the output without saying how the command ended: attach to it again";
    CliError::new(ErrorKind::Unavailable, "process_lost", detail)
}

/// Takes output until the process has ended, or all that was asked for has come.
async fn until_told(
    mut events: ExecStream,
    mut collected: Option<&mut Both>,
) -> Result<Option<ExitStatus>, CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match (events.next().await?, collected.as_mut()) {
            (ExecEvent::Exited(status), _) => return Ok(Some(status)),
            (ExecEvent::UpToDate, _) => return Ok(None),
            (ExecEvent::Stdout(bytes), Some(all)) => all.stdout.add(&bytes),
            (ExecEvent::Stderr(bytes), Some(all)) => all.stderr.add(&bytes),
            (ExecEvent::Stdout(bytes), None) => print(&mut stdout, &bytes).await?,
            (ExecEvent::Stderr(bytes), None) => print(&mut stderr, &bytes).await?,
        }
    }
}

/// Tells, or counts where output is collected, the first bytes of a process that are not kept any more.
fn missing(started: &Started, collected: Option<&mut Both>) {
    if let Some(all) = collected {
        all.stdout.miss(started.stdout_offset);
        all.stderr.miss(started.stderr_offset);
        return;
    }
    for (name, missing) in
        [("standard output", started.stdout_offset), ("standard error", started.stderr_offset)]
    {
        if missing > 0 {
            say(&format!("the first {missing} bytes of {name} are not kept any more"));
        }
    }
}

async fn print(to: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> Result<(), CliError> {
    to.write_all(bytes).await.map_err(|error| CliError::output(&error))?;
    to.flush().await.map_err(|error| CliError::output(&error))
}

/// Carries input for ever; the end of the command ends it. What cannot be sent because the connection broke shows in
/// the output.
async fn input(mut writer: ExecWriter, wiring: Wiring) -> Result<std::convert::Infallible, CliError> {
    let mut resized = if wiring.terminal { Some(window_changes()?) } else { None };
    // Asked now: a terminal that is gone is none any more, and reads from it fail with EIO.
    let from_terminal = std::io::stdin().is_terminal();
    let mut stdin = if wiring.stdin || wiring.terminal { Some(read_stdin()?) } else { None };
    let mut detector = wiring.detach_keys.filter(|_| wiring.terminal).map(Detector::new);
    loop {
        let sent = tokio::select! {
            data = next(&mut stdin) => match data {
                Some(Ok(data)) => match &mut detector {
                    Some(detector) => {
                        let (passed, detached) = detector.pass(&data);
                        let sent = writer.stdin(&passed).await;
                        if detached {
                            return Err(CliError::Detached);
                        }
                        sent
                    }
                    None => writer.stdin(&data).await,
                },
                // The terminal is gone: the signal that tells so decides what becomes of the command.
                Some(Err(error)) if from_terminal && error.raw_os_error() == Some(libc::EIO) => {
                    stdin = None;
                    Ok(())
                }
                Some(Err(error)) => return Err(CliError::file("reading", "standard input", &error)),
                None => {
                    stdin = None;
                    writer.close_stdin().await
                }
            },
            () = changed(&mut resized) => match terminal::size() {
                Some(size) => writer.resize(size).await,
                None => Ok(()),
            },
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn next(stdin: &mut Option<mpsc::Receiver<std::io::Result<Bytes>>>) -> Option<std::io::Result<Bytes>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => {
            resized.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn window_changes() -> Result<Signal, CliError> {
    signal(SignalKind::window_change()).map_err(|error| CliError::file("listening to", "signals", &error))
}

/// Reads standard input on a thread of its own: a read from a terminal cannot be cancelled, and must not hold up the
/// end of this program.
fn read_stdin() -> Result<mpsc::Receiver<std::io::Result<Bytes>>, CliError> {
    let (sender, receiver) = mpsc::channel(4);
    let read = move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; INPUT_PART];
        loop {
            let part = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = part.is_err();
            if sender.blocking_send(part).is_err() || failed {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    thread.map(|_| receiver).map_err(|error| CliError::file("starting", "a thread", &error))
}

/// Passes signals on to the command and gives it time to end by itself: after Ctrl-C for as long as it takes, after any
/// other [`GRACE`]. Another signal, or the end of that time, ends us. Signals go by requests of their own, so that they
/// do not wait behind input the command does not read.
async fn pass_on(client: &Client, vm: &VmRef, process: &ProcessId, interrupts: &mut Interrupts) -> u8 {
    let first = interrupts.next().await;
    let patience = async {
        let _ = client.signal(vm, process, first).await;
        if first == 2 {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    if first == 2 {
        say("interrupting the command; once more to abort");
    }
    tokio::select! {
        () = patience => first,
        signal = interrupts.next() => signal,
    }
}

/// What is kept of a process's output, and what comes if that was asked for: shown, or collected. What is not kept any
/// more is said. The status is there if the process has ended.
pub(crate) async fn show(
    session: ExecSession,
    collect: bool,
) -> Result<(Option<ExitStatus>, Both), CliError> {
    // The writer stays: dropping it would close the connection.
    let ExecSession { started, events, writer: _open } = session;
    let mut all = Both::default();
    let mut collected = collect.then_some(&mut all);
    missing(&started, collected.as_deref_mut());
    let status = until_told(events, collected).await?;
    Ok((status, all))
}
