//! Commands whose output is collected.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use microvm_api::exec::Executed;
use microvm_api::operation::Json;
use microvm_api::operations::guest;
use microvm_ports::guest::{ProcessEvent, ProcessEvents, ProcessInput, ProcessWriter};
use microvm_types::exec::{ExecRequest, ExitStatus};
use microvm_types::{ErrorKind, Phase};

use crate::call::Call;
use crate::collected::{Output, answer};
use crate::failure::Failure;
use crate::handlers::command::{self, Prepared};
use crate::limits::OUTGOING;
use crate::reply::Reply;
use crate::session::Session;

/// Place of the output that an answer leaves out.
const REST: &str = "the last MiB of each output can be read for some minutes: `read` with the id in `process`, on the \
                    WebSocket of `exec`; write more than 10 MB to a file";

/// Bytes of input that are sent at once.
const INPUT_PART: usize = 64 << 10;

pub(crate) async fn execute(
    app: Session,
    Call { path: vm, body: request, charge, .. }: Call<guest::Run>,
) -> Result<Reply<Json<Executed>>, Failure> {
    if request.timeout == 0 {
        return Err(Failure::invalid("invalid_field", "timeout: 0 is not possible, at least 1 second is"));
    }
    let time = Duration::from_secs(request.timeout);
    command::duration("timeout", time, &app.bounds)?;
    let rest = ExecRequest {
        environment: request.env,
        working_directory: request.working_dir,
        user: request.user,
        timeout_ms: Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        ..ExecRequest::default()
    };
    let Prepared { command, input } = command::prepared(request.command, &rest, &app.bounds)?;
    let request = ExecRequest { command, stdin: input.is_some(), ..rest };
    command::check(&request, &app.bounds)?;
    charge.hold(OUTGOING)?;
    let guest = app.guest(&vm).await?;
    let begun = Instant::now();
    let mut process = guest.exec(&request).await?;
    let (mut stdout, mut stderr) = (Output::charged_to(&charge), Output::charged_to(&charge));
    let running = || Ok(app.services.vms.get(&vm)?.record.phase() == Phase::Running);
    let patience = Patience { command: timeout(&request), lateness: app.limits.lateness };
    let collecting = collect(patience, running, &mut process.events, &mut stdout, &mut stderr);
    let status = tokio::select! {
        status = collecting => status?,
        never = feed(&*process.input, input) => match never {},
    };
    let error = match status {
        _ if status.timed_out => Some(format!("its time of {:?} was up", timeout(&request))),
        status => status.signal.map(|signal| format!("it was ended by signal {signal}")),
    };
    let took = begun.elapsed();
    let done = Executed {
        success: status.whole_code() == 0,
        exit_code: status.whole_code().into(),
        process: process.id,
        execution_time_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        duration_seconds: took.into(),
        error,
        timestamp: app.now(),
        stdout: String::new(),
        stderr: String::new(),
        stdout_base64: None,
        stderr_base64: None,
        truncated: false,
        omitted: None,
    };
    Ok(answer(done, stdout, stderr, REST))
}

/// Sends the input of a command, then waits: the events of the command tell how it ends, also if the guest is lost meanwhile.
async fn feed(process: &dyn ProcessWriter, input: Option<Bytes>) -> Infallible {
    if let Some(mut rest) = input {
        let sent = async {
            while !rest.is_empty() {
                let part = rest.split_to(rest.len().min(INPUT_PART));
                process.send(ProcessInput::Stdin(part)).await?;
            }
            process.send(ProcessInput::CloseStdin).await
        };
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a command ended before it had read its input");
        }
    }
    std::future::pending().await
}

/// Time for the command, and further time for the guest to report its end.
#[derive(Debug, Clone, Copy)]
struct Patience {
    command: Duration,
    lateness: Duration,
}

/// Collects until the command ends. The guest keeps the time of the command; one that does not, whether it falls silent or
/// writes for ever, is given up. Time in which the VM is not `running` is not counted.
async fn collect(
    Patience { command, lateness }: Patience,
    running: impl Fn() -> Result<bool, Failure>,
    events: &mut ProcessEvents,
    stdout: &mut Output,
    stderr: &mut Output,
) -> Result<ExitStatus, Failure> {
    let mut counted = Duration::ZERO;
    let tick = (lateness / 4).min(Duration::from_secs(5));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + tick, tick);
    // Ticks that were missed, say while the server got no processor, must not count as time of the command.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            // First in a biased choice: output that never ends would otherwise leave no turn to the clock.
            _ = ticks.tick() => {
                if running()? {
                    counted += tick;
                }
                if counted > command + lateness {
                    let detail = format!(
                        "the guest did not end the command {:?} after its time was up: stop the VM if it does not recover",
                        lateness
                    );
                    return Err(Failure::new(ErrorKind::Timeout, "guest_timeout", detail));
                }
            }
            event = events.next() => match event {
                Some(ProcessEvent::Stdout(bytes)) => stdout.add(&bytes),
                Some(ProcessEvent::Stderr(bytes)) => stderr.add(&bytes),
                Some(ProcessEvent::Exited(status)) => return Ok(status),
                Some(ProcessEvent::Lost(error)) => return Err(error.into()),
                Some(ProcessEvent::UpToDate) | None => return Err(super::exec::ended_without_status()),
            },
        }
    }
}

fn timeout(request: &ExecRequest) -> Duration {
    Duration::from_millis(request.timeout_ms.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Peer;
    use crate::charge::Charge;
    use crate::share::Budget;

    #[tokio::test(flavor = "current_thread")]
    async fn a_guest_that_does_not_end_a_command_is_given_up() {
        let budget = Budget::of(1 << 30);
        let charge = Charge::of(&budget, Peer(None)).unwrap();
        let moment = Duration::from_millis(100);
        let patience = Patience { command: moment, lateness: moment };
        let given_up = async |mut events: ProcessEvents, runs: bool| {
            let (mut stdout, mut stderr) = (Output::charged_to(&charge), Output::charged_to(&charge));
            let ended = collect(patience, || Ok(runs), &mut events, &mut stdout, &mut stderr);
            let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.ok();
            ended.map(|ended| ended.unwrap_err().0.code)
        };
        let noise = || {
            Box::pin(futures_util::stream::unfold((), async |()| {
                tokio::task::yield_now().await;
                Some((ProcessEvent::Stdout(bytes::Bytes::from_static(b"x")), ()))
            }))
        };
        let silence = || Box::pin(futures_util::stream::pending());
        assert_eq!(given_up(noise(), true).await.as_deref(), Some("guest_timeout"));
        assert_eq!(given_up(silence(), true).await.as_deref(), Some("guest_timeout"));
        tokio::time::pause();
        assert_eq!(given_up(silence(), false).await, None, "a VM that stands still is blamed");
    }
}
