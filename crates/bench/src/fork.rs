//! Forks to their first answer, many at once, and what an idle child takes.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use microvm_types::VmRef;

use crate::bare::{BareMachine, MEMORY_MIB};
use crate::boot::{self, execute};
use crate::error::BenchError;
use crate::footprint::{SETTLE, pss_mib};
use crate::pause::{forking, source};
use crate::report::{Promise, Row};
use crate::samples::{Percentiles, Samples};
use crate::{Scene, failed, tidy};

/// Counts of children at once; the last of them is promised and always measured, the others with `--full`.
const COUNTS: [usize; 3] = [10, 50, 100];

/// Forks `count` children and has each of them answer a command; how long until the last one did.
pub(crate) async fn fork_and_answer(
    scene: &Scene,
    vm: &VmRef,
    count: usize,
) -> Result<(Duration, Duration, Vec<VmRef>), BenchError> {
    let started = Instant::now();
    let forked = scene.client.fork_vm(vm, &forking(count)).await?;
    let up = started.elapsed();
    let children: Vec<VmRef> = forked.vms.into_iter().map(|vm| VmRef::from(vm.id)).collect();
    let command = execute("true");
    try_join_all(children.iter().map(|child| scene.client.execute(child, &command))).await?;
    Ok((up, started.elapsed(), children))
}

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let vm = source(scene, MEMORY_MIB).await?;
    let state = scene.bare.golden(scene, &vm).await?;
    let mut rows = Vec::new();
    let one = first_answer(scene, &vm, &state, &mut rows).await?;
    many(scene, &vm, one, &mut rows).await?;
    rows.push(idle_child(scene, &vm, &state).await?);
    scene.client.delete_vm(&vm).await?;
    Ok(rows)
}

/// One fork at a time, against a bare child and against cold boots. Returns the time of one fork.
async fn first_answer(
    scene: &Scene,
    vm: &VmRef,
    state: &microvm_ports::snapshot::BranchSource,
    rows: &mut Vec<Row>,
) -> Result<Percentiles, BenchError> {
    scene.say("forking a running VM");
    let (mut floor, mut floor_command) = (Vec::new(), Vec::new());
    let (mut up, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..=scene.rounds {
        let bare = scene.bare.child(state).await?;
        floor.push(bare.took);
        let spawned = bare.measuring()?.measure_spawn("/bin/true", 1).await;
        let took = bare.took;
        scene.bare.remove(bare).await?;
        let spawned = spawned.map_err(|error| failed("measuring fork and exec", &error))?;
        floor_command.push(took + spawned.into_iter().sum::<Duration>());
        let (to_up, to_answer, children) = fork_and_answer(scene, vm, 1).await?;
        up.push(to_up);
        answered.push(to_answer);
        tidy::delete(scene, children).await?;
    }
    let floor = Samples::new(floor).percentiles();
    let (up, answered) = (Samples::new(up).percentiles(), Samples::new(answered).percentiles());
    let floor_is = "bare QEMU: spawn, state load, agent's hello";
    let promise = Promise::AtMost { times_floor: 1.3, plus: 0.0 };
    rows.push(Row::times("fork to first answer of the child's agent, no pool", floor_is, floor, up, promise));
    // The first command of a child is slow by itself: the emulator has translated nothing yet.
    rows.push(Row::times(
        "fork to first command answered, no pool",
        "the same, and its first fork and exec, timed by the agent",
        Samples::new(floor_command).percentiles(),
        answered,
        promise,
    ));
    if scene.bare.has_kernel("distribution").await {
        scene.say("booting with the kernel `distribution`, to compare");
        let mut cold = Vec::new();
        for _ in 0..=scene.rounds.min(3) {
            cold.push(boot::one(scene, "distribution").await?);
        }
        rows.push(Row::times(
            "fork to first command answered, against booting",
            "cold boot to first command answered, distribution's kernel",
            Samples::new(cold).percentiles(),
            answered,
            Promise::AtMost { times_floor: 0.06, plus: 0.0 },
        ));
    }
    Ok(answered)
}

/// Many children in one request, against one at a time on all cores.
async fn many(scene: &Scene, vm: &VmRef, one: Percentiles, rows: &mut Vec<Row>) -> Result<(), BenchError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for count in COUNTS.into_iter().skip(if scene.full { 0 } else { COUNTS.len() - 1 }) {
        scene.say(&format!("forking {count} children at once"));
        let mut rounds = Vec::new();
        for _ in 0..=scene.rounds.min(3) {
            let (_, took, children) = fork_and_answer(scene, vm, count).await?;
            tidy::delete(scene, children).await?;
            rounds.push(took);
        }
        let found = Samples::new(rounds).percentiles();
        #[expect(clippy::cast_precision_loss, reason = "both are small numbers")]
        let floor = one.p50 * count as f64 / cores as f64;
        let promise = Promise::AtMost { times_floor: 1.0, plus: 0.0 };
        let row = Row::single(
            format!("{count} forks, each answering a command"),
            "ms",
            Some((floor, "one fork, times their number, divided by cores")),
            found.p50,
            promise,
        );
        rows.push(Row { percentiles: Some(found), ..row });
    }
    Ok(())
}

async fn idle_child(
    scene: &Scene,
    vm: &VmRef,
    state: &microvm_ports::snapshot::BranchSource,
) -> Result<Row, BenchError> {
    scene.say("leaving a child and a bare child idle");
    let bare = scene.bare.child(state).await?;
    let measured = idle_pair(scene, vm, &bare).await;
    scene.bare.remove(bare).await?;
    let (floor, ours) = measured?;
    Ok(Row::single(
        "idle child of 512 MiB, memory on the host (PSS)",
        "MiB",
        Some((floor, "an idle bare QEMU with the same state")),
        ours,
        Promise::AtMost { times_floor: 1.1, plus: 2.0 },
    ))
}

async fn idle_pair(scene: &Scene, vm: &VmRef, bare: &BareMachine) -> Result<(f64, f64), BenchError> {
    let forked = scene.client.fork_vm(vm, &forking(1)).await?;
    let children: Vec<VmRef> = forked.vms.into_iter().map(|vm| VmRef::from(vm.id)).collect();
    tokio::time::sleep(SETTLE).await;
    let floor = pss_mib(bare.pid())?;
    let mut ours = 0.0;
    for child in &children {
        #[expect(clippy::cast_precision_loss, reason = "shown to two decimals only")]
        let pss = scene.client.counters(child).await?.memory_pss as f64 / f64::from(1 << 20);
        ours += pss;
    }
    tidy::delete(scene, children).await?;
    Ok((floor, ours))
}
