//! How often boots, restores, pools and runs succeed.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use microvm_api::exec::{CommandLine, Execute};
use microvm_api::snapshot::{CreateSnapshot, RestoreSnapshot};
use microvm_types::{Name, VmRef};

use crate::bare::MEMORY_MIB;
use crate::boot::{execute, one};
use crate::error::BenchError;
use crate::pause::{forking, source};
use crate::pool::{of_default, wish};
use crate::report::{Promise, Row};
use crate::samples::{Percentiles, Samples};
use crate::{Scene, failed, marks};

/// Tries made at once: more than one, so that they can get into each other's way.
const AT_ONCE: usize = 2;
/// Failures of one kind whose reasons are told.
const TOLD: usize = 5;
/// What a restored VM must still have.
const MARK: &str = "kept";

/// Tries of one kind.
#[derive(Debug, Default)]
struct Tally {
    tried: usize,
    good: usize,
    took: Vec<Duration>,
}

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let tries = scene.tries as usize;
    let boots = tally(scene, "cold boots", tries, || async { one(scene, "default").await.map(drop) }).await;
    let restores = restores(scene, tries).await?;
    let pool = acquires(scene, tries).await?;
    let runs = tally(scene, "runs", tries, || runs_python(scene)).await;
    let mut rows = Vec::new();
    for (what, promised, tally) in [
        ("cold boots to a first command that answered", 99.9, boots),
        ("restores of a snapshot whose memory and file were there", 100.0, restores),
        ("VMs of a pool that answered", 99.5, pool),
        ("runs of python3 with the right answer", 99.0, runs),
    ] {
        rows.push(tally.rate(what, promised));
        rows.push(tally.times(what));
    }
    Ok(rows)
}

impl Tally {
    fn rate(&self, what: &str, promised: f64) -> Row {
        #[expect(clippy::cast_precision_loss, reason = "at most some 100,000 tries")]
        let percent = self.good as f64 * 100.0 / self.tried.max(1) as f64;
        let title = format!("{what}, of {}", self.tried);
        let promise = Promise::AtLeast { times_floor: 1.0 };
        Row::single(title, "%", Some((promised, "promised rate")), percent, promise)
    }

    fn times(&self, what: &str) -> Row {
        let found = Samples::new(self.took.clone()).percentiles();
        let title = format!("{what}: time of each, {AT_ONCE} at once, deletion included");
        Row { percentiles: Some(found), ..Row::single(title, "ms", None, median(found), Promise::None) }
    }
}

/// The median; zero if nothing succeeded, which the rate above it tells.
fn median(found: Percentiles) -> f64 {
    if found.count == 0 { 0.0 } else { found.p50 }
}

/// Tries something many times, some at once. Failures are counted, and the first few told.
async fn tally<F>(scene: &Scene, what: &str, tries: usize, attempt: impl Fn() -> F) -> Tally
where
    F: Future<Output = Result<(), BenchError>>,
{
    scene.say(&format!("{tries} {what}"));
    let attempts = futures_util::stream::iter(0..tries).map(|_| {
        let attempt = attempt();
        async move {
            let began = Instant::now();
            attempt.await.map(|()| began.elapsed())
        }
    });
    let mut attempts = std::pin::pin!(attempts.buffer_unordered(AT_ONCE));
    let mut tally = Tally::default();
    while let Some(outcome) = attempts.next().await {
        tally.tried += 1;
        match outcome {
            Ok(took) => {
                tally.good += 1;
                tally.took.push(took);
            }
            Err(error) if tally.tried - tally.good <= TOLD => {
                scene.say(&format!("one of the {what} failed: {error}"));
            }
            Err(_) => {}
        }
    }
    tally
}

/// A VM of its own from the template's golden snapshot, python3 in it, its answer compared.
async fn runs_python(scene: &Scene) -> Result<(), BenchError> {
    let vm = source(scene, MEMORY_MIB).await?;
    let command = ["python3", "-c", "print(6*7)"].map(str::to_owned).to_vec();
    let command = Execute { command: CommandLine::Arguments(command), ..execute("python3") };
    let answered = answers(scene, &vm, &command, "42").await;
    let deleted = scene.client.delete_vm(&vm).await;
    answered?;
    Ok(deleted?)
}

/// Runs a command and compares what it prints.
async fn answers(scene: &Scene, vm: &VmRef, command: &Execute, wanted: &str) -> Result<(), BenchError> {
    let answer = scene.client.execute(vm, command).await?;
    if answer.stdout.trim() == wanted {
        return Ok(());
    }
    let what = format!("exit code {}, printed {:?} {:?}", answer.exit_code, answer.stdout, answer.stderr);
    Err(failed("comparing the answer of a command", &what))
}

/// Restores one snapshot again and again: a file on the disk and a process in memory must be there.
async fn restores(scene: &Scene, tries: usize) -> Result<Tally, BenchError> {
    let vm = source(scene, MEMORY_MIB).await?;
    let shell = |text: &str| Execute { command: CommandLine::Shell(text.to_owned()), ..execute("sh") };
    let prepare = format!("echo {MARK} > /root/mark && (setsid sleep 100000 >/dev/null 2>&1 &)");
    scene.client.execute(&vm, &shell(&prepare)).await?;
    let name = format!("{}reliability", marks::snapshots()).parse();
    let name = name.map_err(|error: microvm_types::NameError| failed("naming a snapshot", &error))?;
    let request = CreateSnapshot { name: Some(name), ..CreateSnapshot::default() };
    let snapshot = scene.client.create_snapshot(&vm, &request).await?;
    scene.client.delete_vm(&vm).await?;
    let check = shell("pgrep -x sleep >/dev/null && cat /root/mark");
    let check = &check;
    let wanted = RestoreSnapshot {
        in_place: false,
        labels: marks::labels(),
        limits: forking(1).limits,
        ..RestoreSnapshot::default()
    };
    let (wanted, id) = (&wanted, snapshot.id.to_string());
    let id = id.as_str();
    let tally = tally(scene, "restores", tries, || async move {
        for vm in scene.client.restore(id, wanted).await?.vms {
            let vm = VmRef::from(vm.id);
            let answered = answers(scene, &vm, check, MARK).await;
            scene.client.delete_vm(&vm).await?;
            answered?;
        }
        Ok(())
    })
    .await;
    scene.client.remove_snapshot(id, true).await?;
    Ok(tally)
}

/// Takes VMs out of one pool, faster than it fills: some wait there, some are made on demand.
async fn acquires(scene: &Scene, tries: usize) -> Result<Tally, BenchError> {
    let pool: Name = marks::pool()?;
    scene.client.create_pool(&of_default(&pool)).await?;
    let (pool, wish, command) = (&pool, &wish(), &execute("true"));
    let tally = tally(scene, "acquires of a pool", tries, || async move {
        let vm = VmRef::from(scene.client.acquire(pool, wish).await?.vm.id);
        let answered = answers(scene, &vm, command, "").await;
        scene.client.delete_vm(&vm).await?;
        answered
    })
    .await;
    scene.client.remove_pool(pool).await?;
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_held_against_its_promise() {
        let tally = |good, tried| Tally { tried, good, took: vec![Duration::from_millis(3); good] };
        assert_eq!(tally(999, 1_000).rate("x", 99.9).reached(), Some(true));
        assert_eq!(tally(998, 1_000).rate("x", 99.9).reached(), Some(false));
        assert_eq!(tally(0, 0).rate("x", 99.0).reached(), Some(false));
        assert!(tally(0, 5).times("x").value.abs() < f64::EPSILON);
    }
}
