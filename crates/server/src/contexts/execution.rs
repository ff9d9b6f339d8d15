//! One execution of code in a context.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use microvm_api::context::{Context, ContextId, ExecuteCode, ExecutionLine, Language};
use microvm_core::GuestLease;
use microvm_ports::guest::{ProcessEvent, ProcessHandle, ProcessInput};
use microvm_types::{ErrorKind, Phase, ProcessId, VmRef};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::answers::{Answers, Output};
use super::frames::Frame;
use super::{Beginning, SIGINT, find, language, restart, start};
use crate::charge::Charge;
use crate::failure::Failure;
use crate::session::Session;

/// Names of the error of code that an interrupt ended: Python's own, and that of our other interpreters.
const INTERRUPTED: [&str; 2] = ["KeyboardInterrupt", "Interrupted"];
/// Silence after which a keepalive is sent.
const QUIET: Duration = Duration::from_secs(5);
/// Time for an idle interpreter to take a request, before it is thought to run code that was given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time for code to end after an interrupt.
const GRACE: Duration = Duration::from_secs(5);

/// One execution of code in a context.
pub(crate) struct Execution {
    pub(crate) app: Session,
    pub(crate) vm: VmRef,
    pub(crate) guest: GuestLease,
    pub(crate) charge: Charge,
    /// The interpreter while it executes the code.
    pub(crate) busy: Option<ProcessId>,
}

impl Execution {
    /// Executes code and sends what comes. Who does not listen any more has it interrupted.
    pub(crate) async fn run(mut self, request: ExecuteCode, lines: Sender<ExecutionLine>) {
        let ending = self.app.ending.clone();
        let outcome = tokio::select! {
            outcome = self.execute(&request, &lines) => outcome,
            () = lines.closed() => Ok(()),
            () = ending.cancelled() => Err(microvm_core::ServiceError::ShuttingDown.into()),
        };
        // Still busy: the caller left, the server ends, or nobody knows how the code did. It must not go on unheard.
        if let Some(process) = self.busy.take()
            && let Err(error) = self.guest.signal(&process, SIGINT).await
        {
            tracing::debug!(vm = %self.vm, %error, "code that nobody waits for cannot be interrupted");
        }
        if let Err(failure) = outcome {
            // Who has gone does not hear it.
            let _ = lines.send(ExecutionLine::Failed { problem: *failure.0 }).await;
        }
    }

    async fn execute(&mut self, request: &ExecuteCode, lines: &Sender<ExecutionLine>) -> Result<(), Failure> {
        let limit = Duration::from_secs(request.timeout);
        // Runs while the code waits for its turn, too: the caller's time is for the answer, not for the code alone.
        let mut clock = Clock::new(limit);
        let language = request.language.unwrap_or_default();
        let id = request.context.clone().unwrap_or_else(|| ContextId::from(language));
        let prepared = async {
            let turn = self.app.turns.wait(&self.guest, id.clone()).await;
            let running = match find(&*self.guest, &id).await {
                // That of a language is there whenever it is asked for.
                Err(failure) if failure.0.code == "context_not_found" && id == ContextId::from(language) => {
                    let context = Context { id, language, cwd: ".".to_owned() };
                    let first = Beginning { context, user: String::new(), environment: BTreeMap::new() };
                    start(&*self.guest, first).await?
                }
                running => running?,
            };
            // Its start was cut off: it never said that it takes requests.
            let running = if running.is_ready() { running } else { restart(&*self.guest, &running).await? };
            let spoken = running.context.language;
            language::check(spoken, request)?;
            let process = self.guest.attach(&running.process, running.offsets).await?;
            Ok::<_, Failure>((turn, spoken, process))
        };
        let mut prepared = std::pin::pin!(prepared);
        let (_turn, spoken, mut process) = loop {
            tokio::select! {
                biased;
                done = &mut prepared => break done?,
                () = clock.tick() => {}
            }
            if clock.is_late() {
                let detail =
                    format!("the context is busy with other code since {} s: interrupt it", request.timeout);
                return Err(Failure::new(ErrorKind::Timeout, "context_busy", detail));
            }
            clock.keep_alive(lines);
        };
        let number = self.load(spoken, &mut process, request, &mut clock, lines).await?;
        // Set before the code runs: whoever leaves from now on leaves it to `run` to interrupt.
        self.busy = Some(process.id.clone());
        let run = language::run(spoken, number, request)?;
        let answers = Answers::new(spoken, number);
        let ended = self.follow(&mut process, run, (number, answers), &mut clock, lines).await;
        // After an error the code may still run, so the interpreter stays marked as busy.
        if ended.is_ok() {
            self.busy = None;
        }
        ended
    }

    /// Has the interpreter take the code, without running it. Code that still runs there was given up by all: it is interrupted, and
    /// if it does not end, the answer is `context_busy`.
    async fn load(
        &self,
        spoken: Language,
        process: &mut ProcessHandle,
        request: &ExecuteCode,
        clock: &mut Clock,
        lines: &Sender<ExecutionLine>,
    ) -> Result<u64, Failure> {
        // bash reads byte by byte: some 20 KB a second in a guest that is emulated and busy.
        let slow = if spoken == Language::Bash { request.code.len() as u64 * 50 } else { 0 };
        let patience = PATIENCE + Duration::from_micros(slow);
        let input = process.input.clone();
        let load = || {
            let id = number(self.app.engine.now_ms());
            let line = language::load(spoken, id, request)?;
            let input = input.clone();
            Ok::<_, Failure>((id, Box::pin(async move { input.send(line).await })))
        };
        let (mut number, mut sending) = load()?;
        // Output is read while the code is sent: an interpreter that is held up by unread output reads no request.
        let (mut sent, mut interrupted, mut until) = (false, false, Instant::now() + patience);
        let (mut answers, mut held) = (Answers::new(spoken, number), 0);
        loop {
            tokio::select! {
                biased;
                outcome = &mut sending, if !sent => {
                    outcome?;
                    sent = true;
                }
                event = process.events.next() => {
                    let (from, bytes) = output(event)?;
                    let found = answers.take(from, &bytes, |bytes| self.hold(&mut held, bytes))?;
                    if !found.contains(&(Some(number), Frame::Loaded)) {
                        continue;
                    }
                    if !interrupted {
                        return Ok(number);
                    }
                    // The interrupt may have met what was loaded.
                    (number, sending) = load()?;
                    answers = Answers::new(spoken, number);
                    (sent, interrupted, until) = (false, false, Instant::now() + patience);
                }
                () = tokio::time::sleep_until(until) => {
                    // The interpreter had no time of its own to answer in: its patience begins anew.
                    if !self.is_running() {
                        until = Instant::now() + patience;
                    } else if interrupted {
                        return Err(busy("code that was given up and goes on although it was interrupted: restart it"));
                    } else {
                        self.guest.signal(&process.id, SIGINT).await?;
                        (interrupted, until) = (true, Instant::now() + GRACE);
                    }
                }
                () = clock.tick() => {
                    if clock.is_late() {
                        if self.is_running() {
                            return Err(busy("code that was given up"));
                        }
                        clock.extend(QUIET);
                    }
                    clock.keep_alive(lines);
                }
            }
        }
    }

    /// Charges for what is needed above what is held.
    fn hold(&self, held: &mut usize, needed: usize) -> Result<(), Failure> {
        if needed > *held {
            self.charge.hold(needed - *held)?;
            *held = needed;
        }
        Ok(())
    }

    /// True unless it is known that the VM does not run. Who may not look at the VM has it taken for running.
    fn is_running(&self) -> bool {
        self.app.services.vms.get(&self.vm).map_or(true, |vm| vm.record.phase() == Phase::Running)
    }

    async fn follow(
        &self,
        process: &mut ProcessHandle,
        run: ProcessInput,
        (number, mut answers): (u64, Answers),
        clock: &mut Clock,
        lines: &Sender<ExecutionLine>,
    ) -> Result<(), Failure> {
        let (mut held, mut late, mut failed) = (0, false, false);
        let input = process.input.clone();
        // As in `load`: both directions at once, so that neither waits for the other.
        let mut sending = std::pin::pin!(input.send(run));
        let mut sent = false;
        loop {
            let event = tokio::select! {
                biased;
                outcome = &mut sending, if !sent => {
                    outcome?;
                    sent = true;
                    continue;
                }
                event = process.events.next() => event,
                () = clock.tick() => {
                    if clock.is_late() {
                        if !self.is_running() {
                            // Its time stands still with the VM.
                            clock.extend(QUIET);
                        } else if late {
                            // `busy` stays: it is interrupted again.
                            return Err(still_runs(clock.limit));
                        } else {
                            late = true;
                            clock.extend(GRACE);
                            self.guest.signal(&process.id, SIGINT).await?;
                        }
                    }
                    clock.keep_alive(lines);
                    continue;
                }
            };
            let (from, bytes) = output(event)?;
            let found = answers.take(from, &bytes, |bytes| self.hold(&mut held, bytes))?;
            for (_, frame) in found.into_iter().filter(|(id, _)| *id == Some(number)) {
                clock.heard();
                let last = frame == Frame::EndOfExecution;
                failed |= matches!(frame, Frame::Error { .. });
                if last && late && !failed {
                    // The code took the interrupt for something else, or went on to its end.
                    let _ = lines.send(timed_out(clock.limit, "")).await;
                }
                if let Some(line) = self.line(frame, late.then_some(clock.limit)) {
                    // The receiver is gone: `run` sees that, too.
                    let _ = lines.send(line).await;
                }
                if last {
                    return Ok(());
                }
            }
        }
    }

    /// The line of an answer that tells a frame, if it tells any. `late`: the time of the code, if that was up.
    fn line(&self, frame: Frame, late: Option<Duration>) -> Option<ExecutionLine> {
        Some(match frame {
            Frame::NumberOfExecutions { execution_count } => {
                ExecutionLine::NumberOfExecutions { execution_count }
            }
            Frame::Stdout { text } => ExecutionLine::Stdout { text, timestamp: self.app.now() },
            Frame::Stderr { text } => ExecutionLine::Stderr { text, timestamp: self.app.now() },
            Frame::Result(result) => ExecutionLine::Result(result),
            Frame::Error { name, traceback, .. }
                if INTERRUPTED.contains(&name.as_str()) && late.is_some() =>
            {
                let place = traceback.trim_end().trim_end_matches(&name);
                timed_out(late.unwrap_or_default(), place)
            }
            Frame::Error { name, value, traceback } => ExecutionLine::Error { name, value, traceback },
            Frame::Incomplete => ExecutionLine::Incomplete,
            Frame::EndOfExecution => ExecutionLine::EndOfExecution,
            Frame::Unreadable => {
                let text = "[a line of the interpreter cannot be read and is left out]\n".to_owned();
                ExecutionLine::Stderr { text, timestamp: self.app.now() }
            }
            Frame::Ready | Frame::Loaded | Frame::Other => return None,
        })
    }
}

/// A number that no other request to an interpreter had: it may live longer than this server.
fn number(now_ms: i64) -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // 2^53 and less survives every reader of JSON; 12 bits count.
    ((now_ms.unsigned_abs() & ((1 << 41) - 1)) << 12) | (COUNT.fetch_add(1, Ordering::Relaxed) & 0xfff)
}

/// Output of an interpreter, if the event is such; an error if no more can come.
fn output(event: Option<ProcessEvent>) -> Result<(Output, bytes::Bytes), Failure> {
    match event {
        Some(ProcessEvent::Stdout(bytes)) => Ok((Output::Stdout, bytes)),
        Some(ProcessEvent::Stderr(bytes)) => Ok((Output::Stderr, bytes)),
        Some(ProcessEvent::Lost(error)) => Err(error.into()),
        Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => Err(ended_with_it()),
    }
}

/// The error of code whose time was up. `place`: where it was, with an end of line.
fn timed_out(limit: Duration, place: &str) -> ExecutionLine {
    let value = format!("the execution took longer than {} s and was interrupted", limit.as_secs());
    let traceback = format!("{place}TimeoutError: {value}\n");
    ExecutionLine::Error { name: "TimeoutError".to_owned(), value, traceback }
}

fn busy(with: &str) -> Failure {
    Failure::new(ErrorKind::Timeout, "context_busy", format!("the context is busy with {with}"))
}

fn still_runs(limit: Duration) -> Failure {
    let detail = format!(
        "the code took longer than {} s and goes on although it was interrupted: restart the context",
        limit.as_secs()
    );
    Failure::new(ErrorKind::Timeout, "execution_timeout", detail)
}

fn ended_with_it() -> Failure {
    let detail = "the interpreter of the context ended while it executed the code (the code ended it, or the guest was out of \
                  memory); its variables are gone";
    Failure::new(ErrorKind::Unavailable, "context_ended", detail)
}

/// Times of an execution.
struct Clock {
    limit: Duration,
    deadline: Instant,
    quiet: Instant,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Self { limit, deadline: now + limit, quiet: now + QUIET }
    }

    /// Waits for whichever is due next.
    async fn tick(&self) {
        tokio::time::sleep_until(self.deadline.min(self.quiet)).await;
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn extend(&mut self, by: Duration) {
        self.deadline = Instant::now() + by;
    }

    /// Something came.
    fn heard(&mut self) {
        self.quiet = Instant::now() + QUIET;
    }

    /// Sends a keepalive if it is due. One who has lines to read needs none.
    fn keep_alive(&mut self, lines: &Sender<ExecutionLine>) {
        if Instant::now() >= self.quiet {
            let _ = lines.try_send(ExecutionLine::Keepalive);
            self.heard();
        }
    }
}
