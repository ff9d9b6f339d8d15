//! VMs handed out of a pool.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use microvm_api::pool::{Acquire, CreatePool};
use microvm_types::vm::Limits;
use microvm_types::{Name, VmRef};

use crate::bare::MEMORY_MIB;
use crate::boot::{execute, request};
use crate::error::BenchError;
use crate::pause::source;
use crate::report::{Promise, Row};
use crate::samples::{Percentiles, Samples};
use crate::{Scene, failed, marks, tidy};

/// VMs that wait at once.
const WAITING: usize = 4;
/// Time that the pool may take to be full.
const FILL_LIMIT: Duration = Duration::from_secs(120);
/// Interval of asking whether the pool is full; there is no event for that.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Rounds at least; one takes some milliseconds once the pool is full.
const ROUNDS: u32 = 20;

/// A pool in which [`WAITING`] VMs of the default template wait.
pub(crate) fn of_default(name: &Name) -> CreatePool {
    let like = request("default");
    let mut overrides = like.overrides;
    overrides.vcpus = like.vcpus;
    overrides.memory_mib = like.memory_mib;
    CreatePool {
        name: name.clone(),
        template: None,
        overrides,
        min: WAITING,
        max: 4 * WAITING,
        labels: BTreeMap::new(),
        metadata: BTreeMap::new(),
        max_age_seconds: None,
    }
}

/// Takes a VM that is known as one of this program's, and goes when it is stopped.
pub(crate) fn wish() -> Acquire {
    Acquire {
        labels: marks::labels(),
        limits: Limits { ephemeral: true, ..Limits::default() },
        ..Acquire::default()
    }
}

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    scene.say("filling a pool");
    let pool = marks::pool()?;
    scene.client.create_pool(&of_default(&pool)).await?;
    let wish = wish();
    let mut rows = vec![filling(scene, &pool).await?];
    for (answer, name) in [
        (Answer::Ping, "pool acquire to first answer of the agent, over REST"),
        (Answer::Command, "pool acquire to first command answered, over REST"),
    ] {
        let (floor, ours) = acquire(scene, &pool, &wish, answer).await?;
        let promise = Promise::AtMost { times_floor: 3.0, plus: 5.0 };
        rows.push(Row::times(name, "ping over REST", floor, ours, promise));
    }
    scene.client.remove_pool(&pool).await?;
    Ok(rows)
}

/// How long the new pool takes to be full, beside VMs made one after the other. Under emulation a VM keeps one processor
/// busy while it is made, so a host of two cores can gain a factor of two at most.
async fn filling(scene: &Scene, pool: &Name) -> Result<Row, BenchError> {
    let began = Instant::now();
    full(scene, pool).await?;
    let together = began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    let mut vms = Vec::new();
    for _ in 0..WAITING {
        vms.push(source(scene, MEMORY_MIB).await?);
    }
    let alone = began.elapsed().as_secs_f64() * 1e3;
    tidy::delete(scene, vms).await?;
    let title = format!("a new pool until {WAITING} VMs wait, the golden snapshot included");
    Ok(Row::single(title, "ms", Some((alone, "as many VMs one after the other")), together, Promise::None))
}

/// Sign that a VM is there.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Ping,
    /// `true`, run in it: its fork and exec in the guest are in it too.
    Command,
}

/// Takes VMs one after the other; how long a ping takes, and how long it was until the first answer.
async fn acquire(
    scene: &Scene,
    pool: &Name,
    wish: &Acquire,
    answer: Answer,
) -> Result<(Percentiles, Percentiles), BenchError> {
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    let command = execute("true");
    for _ in 0..=scene.rounds.max(ROUNDS) {
        full(scene, pool).await?;
        let started = Instant::now();
        let acquired = scene.client.acquire(pool, wish).await?;
        let vm = VmRef::from(acquired.vm.id);
        match answer {
            Answer::Ping => drop(scene.client.ping(&vm).await?),
            Answer::Command => drop(scene.client.execute(&vm, &command).await?),
        }
        ours.push(started.elapsed());
        if acquired.tier != "pool" {
            return Err(failed("taking a VM of a full pool", &format!("it was a {}", acquired.tier)));
        }
        // While the pool makes another one, as the next customer would meet it; the median of several.
        let mut pings = Vec::new();
        for _ in 0..5 {
            let started = Instant::now();
            scene.client.ping(&vm).await?;
            pings.push(started.elapsed());
        }
        pings.sort_unstable();
        floor.push(pings[pings.len() / 2]);
        scene.client.delete_vm(&vm).await?;
    }
    Ok((Samples::new(floor).percentiles(), Samples::new(ours).percentiles()))
}

/// Waits until as many VMs wait as shall.
async fn full(scene: &Scene, pool: &Name) -> Result<(), BenchError> {
    let began = Instant::now();
    loop {
        let now = scene.client.pool(pool).await?;
        if now.waiting >= WAITING && now.filling == 0 {
            return Ok(());
        }
        if began.elapsed() > FILL_LIMIT {
            let why = now.failure.unwrap_or_else(|| format!("{} of {WAITING} wait", now.waiting));
            return Err(failed("filling a pool", &why));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
