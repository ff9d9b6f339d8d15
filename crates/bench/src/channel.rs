//! Ping, exec and file transfer, against the channel itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use microvm_client::{ExecEvent, WriteFile};
use microvm_types::VmRef;
use microvm_types::exec::ExecRequest;

use crate::bare::BareMachine;
use crate::boot::request;
use crate::error::BenchError;
use crate::report::{Promise, Row};
use crate::samples::Samples;
use crate::{Scene, failed};

/// Rounds of what takes below 10 ms.
const QUICK_ROUNDS: u32 = 200;
/// Bytes of a transfer.
const TRANSFER: u64 = 256 << 20;
/// Bytes handed over at once.
const CHUNK: usize = 256 << 10;

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    scene.say("booting a VM and a bare machine");
    let kernel = "default";
    let bare = scene.bare.boot(kernel).await?;
    let vm = VmRef::from(scene.client.create_vm(&request(kernel)).await?.id);
    let outcome = all(scene, &vm, &bare).await;
    scene.bare.remove(bare).await?;
    scene.client.delete_vm(&vm).await?;
    outcome
}

async fn all(scene: &Scene, vm: &VmRef, bare: &BareMachine) -> Result<Vec<Row>, BenchError> {
    Ok(vec![ping(scene, vm, bare).await?, exec(scene, vm, bare).await?]
        .into_iter()
        .chain(transfer(scene, vm, bare).await?)
        .collect())
}

async fn ping(scene: &Scene, vm: &VmRef, bare: &BareMachine) -> Result<Row, BenchError> {
    scene.say("pinging");
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..=QUICK_ROUNDS {
        floor.push(bare.guest.ping().await.map_err(|error| failed("pinging", &error))?);
        let started = Instant::now();
        scene.client.ping(vm).await?;
        ours.push(started.elapsed());
    }
    Ok(Row::times(
        "ping over REST",
        "raw frame round trip on the channel",
        Samples::new(floor).percentiles(),
        Samples::new(ours).percentiles(),
        Promise::AtMost { times_floor: 1.5, plus: 0.2 },
    ))
}

async fn exec(scene: &Scene, vm: &VmRef, bare: &BareMachine) -> Result<Row, BenchError> {
    scene.say("running /bin/true");
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    let request = ExecRequest { command: vec!["/bin/true".to_owned()], ..ExecRequest::default() };
    // Taking turns in groups: a host that slows down for a second slows both.
    for _ in 0..=QUICK_ROUNDS / 10 {
        let spawned = bare.measuring()?.measure_spawn("/bin/true", 10).await;
        floor.extend(spawned.map_err(|error| failed("measuring fork and exec", &error))?);
        for _ in 0..10 {
            let started = Instant::now();
            let mut session = scene.client.exec(vm, &request).await?;
            while !matches!(session.events.next().await?, ExecEvent::Exited(_)) {}
            ours.push(started.elapsed());
        }
    }
    Ok(Row::times(
        "`exec true` over REST",
        "fork and exec of the same inside the guest, timed by the agent",
        Samples::new(floor).percentiles(),
        Samples::new(ours).percentiles(),
        Promise::AtMost { times_floor: 1.0, plus: 2.0 },
    ))
}

async fn transfer(scene: &Scene, vm: &VmRef, bare: &BareMachine) -> Result<[Row; 2], BenchError> {
    scene.say("moving 256 MiB each way");
    let path = b"/root/bench.bin";
    let chunk = noise();
    let (mut raw_push, mut raw_pull, mut push, mut pull) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=scene.rounds.min(5) {
        let measured = bare.measuring()?.measure_channel(TRANSFER, TRANSFER).await;
        let (to, from) = measured.map_err(|error| failed("measuring the channel", &error))?;
        raw_push.push(to);
        raw_pull.push(from);
        let count = TRANSFER / CHUNK as u64;
        let chunk = chunk.clone();
        let data =
            futures_util::stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
        let started = Instant::now();
        let sent = scene.client.write_file(vm, path, &WriteFile::default(), data).await?;
        push.push(started.elapsed());
        let started = Instant::now();
        let (_, mut download) = scene.client.read_file(vm, path).await?;
        let mut received = 0;
        while let Some(bytes) = download.next().await? {
            received += bytes.len() as u64;
        }
        pull.push(started.elapsed());
        if (sent.bytes, received) != (TRANSFER, TRANSFER) {
            return Err(failed("moving 256 MiB", &format!("{} went in and {received} came out", sent.bytes)));
        }
        scene.client.remove(vm, path, false).await?;
    }
    let rate = |times: Vec<Duration>| {
        let median = Samples::new(times).percentiles().p50 / 1e3;
        #[expect(clippy::cast_precision_loss, reason = "256 MiB is a small number")]
        let mebibytes = (TRANSFER >> 20) as f64;
        mebibytes / median
    };
    let row = |what: &str, raw: Vec<Duration>, ours: Vec<Duration>| {
        let floor = Some((rate(raw), "raw bytes through the same channel, no file"));
        Row::single(what, "MiB/s", floor, rate(ours), Promise::AtLeast { times_floor: 0.7 })
    };
    Ok([
        row("push of 256 MiB into a file", raw_push, push),
        row("pull of 256 MiB from a file", raw_pull, pull),
    ])
}

/// Bytes without runs of zeros, which would travel for free (xorshift64, Marsaglia 2003).
fn noise() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(CHUNK);
    while bytes.len() < CHUNK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.into()
}
