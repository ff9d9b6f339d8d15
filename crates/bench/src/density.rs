//! As many living VMs as the host can hold.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microvm_types::VmRef;

use crate::error::BenchError;
use crate::footprint::mib_of;
use crate::pause::{forking, source};
use crate::report::{Promise, Row};
use crate::{Scene, tidy};

/// Memory of each VM.
const MEMORY_MIB: u32 = 256;
/// Time that each may take to answer while all are asked at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The host keeps so much.
const HOST_RESERVE_MIB: f64 = 2_048.0;
/// Before idle VMs are watched: what they still have to do after their start is done.
const SETTLE: Duration = Duration::from_secs(5);
/// Time that they are watched.
const IDLE: Duration = Duration::from_secs(5);
/// VMs that may take a twentieth of the host's processors while they are idle.
const FEW: usize = 50;
/// Children made by one request.
const STEP: usize = 10;

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let wanted = scene.count as usize;
    scene.say(&format!("growing to {wanted} VMs of {MEMORY_MIB} MiB"));
    let first = source(scene, MEMORY_MIB).await?;
    let mut vms = vec![first.clone()];
    let began = Instant::now();
    while vms.len() < wanted && mib_of("/proc/meminfo", "MemAvailable:")? > HOST_RESERVE_MIB {
        let count = STEP.min(wanted - vms.len());
        let forked = scene.client.fork_vm(&first, &forking(count)).await?;
        vms.extend(forked.vms.into_iter().map(|vm| VmRef::from(vm.id)));
        if vms.len() / 50 > (vms.len() - count) / 50 {
            scene.say(&format!("{} VMs live", vms.len()));
        }
    }
    let took = began.elapsed();
    let asked = Instant::now();
    let answers = join_all(vms.iter().map(|vm| async {
        let answer = tokio::time::timeout(ANSWER_LIMIT, scene.client.ping(vm)).await;
        matches!(answer, Ok(Ok(_)))
    }))
    .await;
    let last = asked.elapsed();
    tokio::time::sleep(SETTLE).await;
    let (_, before) = counters(scene, &vms).await?;
    tokio::time::sleep(IDLE).await;
    let (mut pss, after) = counters(scene, &vms).await?;
    let living = vms.len();
    tidy::delete(scene, vms).await?;
    let answered = answers.into_iter().filter(|answered| *answered).count();
    pss.sort_unstable();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    #[expect(clippy::cast_precision_loss, reason = "small numbers, shown to two decimals only")]
    let (idle, share, answered, wanted, each, per_vm) = (
        after.saturating_sub(before) as f64,
        after.saturating_sub(before) as f64 / (IDLE.as_secs_f64() * 1e3 * cores as f64)
            * 100.0
            * (FEW as f64 / living as f64),
        answered as f64,
        wanted as f64,
        pss.get(pss.len() / 2).copied().unwrap_or(0) as f64 / f64::from(1 << 20),
        took.as_secs_f64() * 1e3 / living as f64,
    );
    let promise = Promise::AtLeast { times_floor: 1.0 };
    let title = format!("VMs of {MEMORY_MIB} MiB at once that answer within 5 s, of {living}");
    Ok(vec![
        Row::single(title, "VMs", Some((wanted, "as many as were wanted")), answered, promise),
        Row::single("until all of them had answered", "ms", None, last.as_secs_f64() * 1e3, Promise::None),
        Row::single("processor time of all of them, idle for 5 s", "ms", None, idle, Promise::None),
        Row::single(
            format!("processors of the host that {FEW} of them take, idle"),
            "%",
            None,
            share,
            Promise::AtMost { times_floor: 0.0, plus: 5.0 },
        ),
        Row::single("memory on the host of each (PSS), median", "MiB", None, each, Promise::None),
        Row::single("time to make each", "ms", None, per_vm, Promise::None),
    ])
}

/// Memory of each VM in bytes, and the processor time of all in milliseconds.
async fn counters(scene: &Scene, vms: &[VmRef]) -> Result<(Vec<u64>, u64), BenchError> {
    let (mut pss, mut cpu_ms) = (Vec::new(), 0);
    for vm in vms {
        let counters = scene.client.counters(vm).await?;
        pss.push(counters.memory_pss);
        cpu_ms += counters.cpu_ms;
    }
    Ok((pss, cpu_ms))
}
