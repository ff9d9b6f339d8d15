//! A command in a guest with our standard streams.

use std::io::{IsTerminal as _, Read as _};

use bytes::Bytes;
use microvm_api::output::Outputs;
use microvm_client::sandbox::{CollectedOutput, pass_on};
use microvm_client::{Client, ClientError, ExecSession, ExecStream, ExecWriter, Started};
use microvm_types::VmRef;
use microvm_types::exec::ExitStatus;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::detach::{DetachKeys, Detector};
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;
use crate::terminal::{self, RawTerminal};

/// Bytes of standard input read at once.
const INPUT_PART: usize = 64 * 1024;

/// Collected output as JSON carries it. What is left out is said on standard error too; `rest` says where it can be had.
pub(crate) fn outputs(collected: CollectedOutput, rest: &str) -> Outputs {
    let outputs = collected.outputs(rest);
    if let Some(omitted) = &outputs.omitted {
        say(&omitted.to_string());
    }
    outputs
}

/// Connection of the streams.
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
) -> Result<(ExitStatus, CollectedOutput), CliError> {
    let raw = if wiring.terminal { Some(RawTerminal::enter()?) } else { None };
    let ExecSession { started, events, writer } = session;
    let mut all = CollectedOutput::of(&started);
    let into = wiring.collect.then_some(&mut all);
    let interrupted = |signal| {
        if signal == 2 {
            say("interrupting the command; once more to abort");
        }
    };
    let status = tokio::select! {
        status = output(&started, events, into) => status?.ok_or_else(|| ClientError::no_status().into()),
        never = input(writer, wiring) => match never? {},
        signal = pass_on(client, vm, &started.process, interrupts, interrupted) => Err(CliError::Interrupted(signal)),
    };
    // Before an error is told: lines do not begin at the left on a raw terminal.
    drop(raw);
    Ok((status?, all))
}

/// Output that is kept of a process, and output to come if that was asked for: printed, or collected. The status is there if
/// the process has ended.
pub(crate) async fn show(
    session: ExecSession,
    collect: bool,
) -> Result<(Option<ExitStatus>, CollectedOutput), CliError> {
    // The writer stays: dropping it would close the connection.
    let ExecSession { started, events, writer: _open } = session;
    let mut all = CollectedOutput::of(&started);
    let status = output(&started, events, collect.then_some(&mut all)).await?;
    Ok((status, all))
}

/// Collects output, or prints it and says how much of its beginning is not kept any more.
async fn output(
    started: &Started,
    mut events: ExecStream,
    into: Option<&mut CollectedOutput>,
) -> Result<Option<ExitStatus>, CliError> {
    if let Some(all) = into {
        return Ok(events.collect(all).await?);
    }
    for (name, missing) in
        [("standard output", started.stdout_offset), ("standard error", started.stderr_offset)]
    {
        if missing > 0 {
            say(&format!("the first {missing} bytes of {name} are not kept any more"));
        }
    }
    Ok(events.copy_to(&mut tokio::io::stdout(), &mut tokio::io::stderr()).await?)
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
