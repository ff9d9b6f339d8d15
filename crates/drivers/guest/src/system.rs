//! The guest as a system; ports; measurements.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use microvm_ports::GuestError;
use microvm_ports::guest::PortConnection;
use microvm_protocol::messages::{self, ConnectPort, Empty, MeasureSource, MeasureSpawn, Operation, Reply};
use microvm_protocol::mux::{Incoming, StreamHandle};
use microvm_types::guest::{GuestHealth, GuestProcess, NotStarted, SystemInfo};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::channel::Channel;
use crate::list::Reading;
use crate::sanitize::clean;
use crate::transfer;

/// Most processes of a guest that are listed.
const MOST_PROCESSES: usize = 100_000;
/// Portions that wait on their way to a port.
const PORT_QUEUE: usize = 16;

pub(crate) async fn system_info(channel: &Channel) -> Result<SystemInfo, GuestError> {
    let Reply::System(system) = channel.unary(Operation::SystemInfo(Empty {})).await? else {
        return Err(channel.broken("the guest does not describe itself"));
    };
    // JSON has no infinity and no NaN, and a hostile guest sends them.
    let load =
        |index: usize| system.load_average.get(index).copied().filter(|load| load.is_finite()).unwrap_or(0.0);
    Ok(SystemInfo {
        operating_system: clean(&system.operating_system),
        kernel_release: clean(&system.kernel_release),
        host_name: clean(&system.host_name),
        architecture: clean(&system.architecture),
        vcpus: system.vcpus,
        memory_total: system.memory_total,
        memory_available: system.memory_available,
        disk_total: system.disk_total,
        disk_available: system.disk_available,
        uptime_seconds: system.uptime_seconds,
        load_average: [load(0), load(1), load(2)],
        wall_clock_ms: system.wall_clock_ms,
    })
}

pub(crate) async fn guest_processes(channel: &Channel) -> Result<Vec<GuestProcess>, GuestError> {
    let reading = Reading {
        most: MOST_PROCESSES,
        open: |reply| if let Reply::GuestProcesses(some) = reply { Some(some.processes) } else { None },
        keep: |process: messages::GuestProcess| {
            Some(GuestProcess {
                pid: process.pid,
                parent: process.parent,
                uid: process.uid,
                state: char::from_u32(process.state).filter(char::is_ascii_alphabetic).unwrap_or('?'),
                resident_bytes: process.resident_bytes,
                cpu_ms: process.cpu_ms,
                command: clean(&process.command),
                command_omitted: process.command_omitted,
            })
        },
        behind: |process: &GuestProcess| process.command.capacity(),
    };
    channel.list(Operation::GuestProcesses(Empty {}), reading).await
}

pub(crate) async fn health(channel: &Channel) -> Result<GuestHealth, GuestError> {
    let Reply::Measured(figures) = channel.unary(Operation::Health(Empty {})).await? else {
        return Err(channel.broken("the guest does not say how it is"));
    };
    let percent = |value: f64| if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 };
    Ok(GuestHealth {
        cpu_percent: percent(figures.cpu_percent),
        memory_percent: percent(figures.memory_percent),
        disk_percent: percent(figures.disk_percent),
        start_commands_done: figures.start_commands_done,
        start_command_not_started: figures.not_started.map(|failure| NotStarted {
            place: failure.place,
            command: clean(&failure.command),
            command_omitted: failure.command_omitted,
            reason: clean(&failure.reason),
        }),
    })
}

/// Ends the task that sends to a port when nobody holds the connection any more: a guest that never reads would keep it,
/// and its stream, for ever.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) async fn connect_port(channel: &Arc<Channel>, port: u16) -> Result<PortConnection, GuestError> {
    let stream = channel.open(Operation::ConnectPort(ConnectPort { port: port.into() }))?;
    let Reply::Done(_) = channel.reply(&stream).await? else {
        return Err(channel.broken("the guest does not confirm a connection"));
    };
    let stream = Arc::new(stream);
    let (outgoing, mut waiting) = tokio::sync::mpsc::channel::<Bytes>(PORT_QUEUE);
    let sending = Arc::clone(&stream);
    let sender = channel.spawn(async move {
        while let Some(bytes) = waiting.recv().await {
            if sending.send_data(bytes).await.is_err() {
                return;
            }
        }
        sending.end();
    });
    let state = Some((Arc::clone(channel), stream));
    let incoming =
        futures::stream::unfold(state, |state: Option<(Arc<Channel>, Arc<StreamHandle>)>| async move {
            let (channel, stream) = state?;
            loop {
                let error = match stream.receive().await {
                    Ok(None) => return None,
                    Ok(Some(Incoming::Data(bytes))) => return Some((Ok(bytes), Some((channel, stream)))),
                    Ok(Some(Incoming::Message(None))) => continue,
                    Ok(Some(_)) => channel.broken("the guest sends something else than data"),
                    Err(error) => channel.stream_failed(error),
                };
                return Some((Err(error), None));
            }
        });
    // Held by the stream itself, not by its state: the guest may end its direction first and go on reading.
    let guard = AbortOnDrop(sender);
    let incoming = incoming.inspect(move |_| {
        let _ = &guard;
    });
    Ok(PortConnection { incoming: Box::pin(incoming), outgoing })
}

pub(crate) async fn measure_channel(
    channel: &Arc<Channel>,
    to_guest: u64,
    from_guest: u64,
) -> Result<(Duration, Duration), GuestError> {
    let block = Bytes::from(vec![0x5a; 64 * 1024]);
    let stream = channel.open(Operation::MeasureSink(Empty {}))?;
    let started = Instant::now();
    let mut left = to_guest;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.send_data(block.slice(..part)).await.map_err(|error| channel.stream_failed(error))?;
        left -= part as u64;
    }
    stream.end();
    match channel.reply(&stream).await? {
        Reply::Written(written) if written.bytes == to_guest => {}
        _ => return Err(channel.broken("the guest did not get what was sent")),
    }
    let sent = started.elapsed();
    let stream = channel.open(Operation::MeasureSource(MeasureSource { bytes: from_guest }))?;
    stream.end();
    let started = Instant::now();
    let mut data = transfer::pull(Arc::clone(channel), stream, Some(from_guest));
    while let Some(part) = data.next().await {
        part?;
    }
    Ok((sent, started.elapsed()))
}

pub(crate) async fn measure_spawn(
    channel: &Channel,
    program: &str,
    rounds: u32,
) -> Result<Vec<Duration>, GuestError> {
    let request = MeasureSpawn { program: program.to_owned(), rounds };
    match channel.unary(Operation::MeasureSpawn(request)).await? {
        Reply::Measured(figures) => Ok(figures.nanoseconds.into_iter().map(Duration::from_nanos).collect()),
        _ => Err(channel.broken("the guest does not answer with times")),
    }
}
