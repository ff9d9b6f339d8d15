//! A thin client of QEMU's machine protocol: one JSON document per line, answers matched by id, events broadcast.
//!
//! The VMM may be under a hostile guest's control: lines are limited, and nothing in an answer is trusted.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use microvm_ports::MachineError;
use microvm_ports::waiting::within;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Longest line accepted from QEMU, in bytes. Its longest honest answer, the block statistics, is some 20 KiB.
const LINE_LIMIT: u64 = 1 << 20;
/// Events that may wait for the machine's task.
const EVENT_QUEUE: usize = 256;

/// An event of QEMU.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "event")]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) data: Value,
}

#[derive(Deserialize)]
struct Answer {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Value>,
}

/// Progress of loading a state, from QEMU's `MIGRATION` events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Loading {
    /// Nothing was loaded yet, or loading is under way.
    #[default]
    Open,
    /// Everything is in place.
    Complete,
    /// It was given up.
    Failed,
}

impl Loading {
    pub(crate) fn is_final(&self) -> bool {
        *self != Self::Open
    }

    pub(crate) fn is_complete(&self) -> bool {
        *self == Self::Complete
    }
}

/// Id of a block job that ended, and why it failed if it did.
pub(crate) type EndedJob = Option<(String, Option<String>)>;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A connection to one QEMU.
pub(crate) struct Qmp {
    writer: AsyncMutex<OwnedWriteHalf>,
    waiting: Waiting,
    next_id: AtomicU64,
    deadline: Duration,
    loading: watch::Receiver<Loading>,
    jobs: watch::Receiver<EndedJob>,
    reader: JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Waits for the greeting, agrees on no extra abilities, and starts reading.
    pub(crate) async fn open(
        stream: UnixStream,
        deadline: Duration,
    ) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let (read, write) = stream.into_split();
        let mut reader = BufReader::new(read);
        let greeting = read_line(&mut reader).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let greeting: Value = serde_json::from_slice(&greeting)?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a QMP greeting"));
        }
        let waiting = Waiting::default();
        let (events, inbox) = mpsc::channel(EVENT_QUEUE);
        let (publish, loading) = watch::channel(Loading::default());
        let (job_ended, jobs) = watch::channel(None);
        let told = Told { events, loading: publish, jobs: job_ended };
        let reader = tokio::spawn(read_all(reader, Arc::clone(&waiting), told));
        let (writer, next_id) = (AsyncMutex::new(write), AtomicU64::new(1));
        let qmp = Self { writer, waiting, next_id, deadline, loading, jobs, reader };
        qmp.call("greet back", "qmp_capabilities", json!({})).await.map_err(io::Error::other)?;
        Ok((qmp, inbox))
    }

    /// Sends one command and waits for its answer. `action` is what the user would call it.
    pub(crate) async fn call(
        &self,
        action: &'static str,
        command: &str,
        arguments: Value,
    ) -> Result<Value, MachineError> {
        self.exchange(action, command, arguments, None).await
    }

    /// Time limit of an answer.
    pub(crate) const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Progress of loading a state.
    pub(crate) fn migration(&self) -> watch::Receiver<Loading> {
        self.loading.clone()
    }

    /// The block job that ended last.
    pub(crate) fn jobs(&self) -> watch::Receiver<EndedJob> {
        self.jobs.clone()
    }

    /// Sends one command together with a descriptor (unix(7), SCM_RIGHTS).
    pub(crate) async fn call_with_descriptor(
        &self,
        action: &'static str,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, MachineError> {
        self.exchange(action, command, arguments, Some(descriptor)).await
    }

    async fn exchange(
        &self,
        action: &'static str,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, MachineError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.lock().insert(id, reply);
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let exchange = async {
            let sent = send(&mut *self.writer.lock().await, line.as_bytes(), descriptor).await;
            sent.map_err(|error| MachineError::Refused {
                action,
                detail: format!("its control socket: {error}"),
            })?;
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(detail)) => Err(MachineError::Refused { action, detail }),
                Err(_) => {
                    Err(MachineError::Refused { action, detail: "its control socket closed".to_owned() })
                }
            }
        };
        // The time counts while other commands are written, too: one VMM that takes nothing blocks them all.
        let outcome = within(self.deadline, exchange).await;
        // An answer that comes later finds nobody and is dropped.
        self.lock().remove(&id);
        outcome.unwrap_or(Err(MachineError::Timeout { action, after: self.deadline }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Value, String>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command is either sent whole or the connection is of no use any more: callers never drop this half-way but by
/// closing it.
async fn send(
    writer: &mut OwnedWriteHalf,
    line: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let Some(descriptor) = descriptor else { return writer.write_all(line).await };
    let rights = [descriptor.as_raw_fd()];
    let stream: &UnixStream = writer.as_ref();
    // tokio sends no descriptors itself.
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let message = [ControlMessage::ScmRights(&rights)];
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(line)], &message, flags, None)?)
        })
        .await?;
    // The descriptor went with the first byte; a short write leaves text only.
    writer.write_all(&line[sent..]).await
}

async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let count = reader.take(LINE_LIMIT).read_until(b'\n', &mut line).await?;
    if count == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long or cut off"));
    }
    Ok(Some(line))
}

/// Receivers of events.
struct Told {
    events: mpsc::Sender<Event>,
    loading: watch::Sender<Loading>,
    jobs: watch::Sender<EndedJob>,
}

async fn read_all(mut reader: BufReader<OwnedReadHalf>, waiting: Waiting, told: Told) {
    let Told { events, loading, jobs } = told;
    while let Ok(Some(line)) = read_line(&mut reader).await {
        let Ok(document) = serde_json::from_slice::<Value>(&line) else { break };
        if document["event"] == "MIGRATION" {
            match document["data"]["status"].as_str() {
                // Kept as a value and not queued: whoever waits cares for the newest only, and may begin to wait
                // late.
                Some("completed") => loading.send_replace(Loading::Complete),
                Some("failed" | "cancelled") => loading.send_replace(Loading::Failed),
                _ => continue,
            };
            continue;
        }
        if let Some("BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED") = document["event"].as_str() {
            let cancelled = document["event"] == "BLOCK_JOB_CANCELLED";
            let error = document["data"]["error"].as_str().map(str::to_owned);
            let error = error.or_else(|| cancelled.then(|| "it was interrupted".to_owned()));
            let id = document["data"]["device"].as_str().unwrap_or_default().to_owned();
            jobs.send_replace(Some((id, error)));
            continue;
        }
        if document.get("event").is_some() {
            if let Ok(event) = serde_json::from_value(document)
                && events.try_send(event).is_err()
            {
                // The machine's task takes events at once; a queue this long means a VMM gone wild.
                break;
            }
            continue;
        }
        let Ok(answer) = serde_json::from_value::<Answer>(document) else { break };
        let waiter =
            answer.id.and_then(|id| waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id));
        if let Some(waiter) = waiter {
            let _ = waiter.send(match answer.error {
                None => Ok(answer.value.unwrap_or(Value::Null)),
                Some(error) => {
                    Err(error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned())
                }
            });
        }
    }
    // Dropped senders tell every caller that no answer comes any more.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

#[cfg(test)]
mod fuzz;
