//! Requests that the server answers per second with many at once, and the time of each, beside the cheapest request there is.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microvm_client::{ClientError, VmQuery};

use crate::bare::MEMORY_MIB;
use crate::boot::execute;
use crate::error::BenchError;
use crate::pause::source;
use crate::report::{Promise, Row};
use crate::samples::{Percentiles, Samples};
use crate::{Scene, tidy};

/// Longest time that an answer is waited for; later it is a failure.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Name of the floor.
const FLOOR: &str = "GET /health/live";

/// Requests of one kind.
#[derive(Debug, Default)]
struct Burst {
    took: Vec<Duration>,
    failed: usize,
    /// The first failure.
    reason: Option<String>,
    lasted: Duration,
}

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let client = &scene.client;
    let vm = source(scene, MEMORY_MIB).await?;
    let nothing = execute("true");
    let every = VmQuery::default();
    let floor = burst(scene, FLOOR, async || client.live().await.map(drop)).await;
    let bursts = [
        ("GET /vms", burst(scene, "GET /vms", async || client.list_vms(&every).await.map(drop)).await),
        ("GET /vms/{vm}", burst(scene, "GET /vms/{vm}", async || client.vm(&vm).await.map(drop)).await),
        ("ping of a guest", burst(scene, "ping of a guest", async || client.ping(&vm).await.map(drop)).await),
        (
            "execute `true`",
            burst(scene, "execute `true`", async || client.execute(&vm, &nothing).await.map(drop)).await,
        ),
    ];
    tidy::delete(scene, vec![vm]).await?;
    let mut rows = floor.rows(scene.concurrency, FLOOR, None);
    for (what, burst) in &bursts {
        rows.extend(burst.rows(scene.concurrency, what, Some(&floor)));
    }
    Ok(rows)
}

/// As many requests as are answered while the time lasts, by so many senders that each wait for their answer.
async fn burst(scene: &Scene, what: &str, request: impl AsyncFn() -> Result<(), ClientError>) -> Burst {
    let lasts = Duration::from_secs(scene.seconds.into());
    scene.say(&format!("{what}, {} at once for {} s", scene.concurrency, scene.seconds));
    let began = Instant::now();
    let senders = (0..scene.concurrency).map(|_| async {
        let mut own = Burst::default();
        while began.elapsed() < lasts {
            let sent = Instant::now();
            let failure = match tokio::time::timeout(ANSWER_LIMIT, request()).await {
                Ok(Ok(())) => {
                    own.took.push(sent.elapsed());
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", ANSWER_LIMIT.as_secs()),
            };
            own.failed += 1;
            own.reason.get_or_insert(failure);
        }
        own
    });
    let mut all = Burst::default();
    for own in join_all(senders).await {
        all.took.extend(own.took);
        all.failed += own.failed;
        all.reason = all.reason.or(own.reason);
    }
    all.lasted = began.elapsed();
    if let Some(reason) = &all.reason {
        scene.say(&format!("{} failed, the first one: {reason}", all.failed));
    }
    all
}

impl Burst {
    #[expect(clippy::cast_precision_loss, reason = "shown to two decimals only")]
    fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.lasted.as_secs_f64()
    }

    /// `None` if none was answered.
    fn times(&self) -> Option<Percentiles> {
        (!self.took.is_empty()).then(|| Samples::new(self.took.clone()).percentiles())
    }

    fn rows(&self, at_once: u32, what: &str, floor: Option<&Self>) -> Vec<Row> {
        let title = format!("{what}, {at_once} at once");
        // Nothing to be compared with where nothing was answered.
        let rate = floor.filter(|floor| !floor.took.is_empty()).map(|floor| (floor.per_second(), FLOOR));
        let mut rows = vec![Row::single(&title, "requests/s", rate, self.per_second(), Promise::None)];
        if let Some(found) = self.times() {
            let floor = floor.and_then(Self::times);
            let row = Row::single(
                format!("{title}: time of each"),
                "ms",
                floor.map(|floor| (floor.p50, FLOOR)),
                found.p50,
                Promise::None,
            );
            rows.push(Row { percentiles: Some(found), floor_percentiles: floor, ..row });
        }
        let sent = self.took.len() + self.failed;
        #[expect(clippy::cast_precision_loss, reason = "shown to two decimals only")]
        let (sent, failed) = (sent as f64, self.failed as f64);
        let promise = Promise::AtMost { times_floor: 0.0, plus: 0.0 };
        // By the same name in every run.
        rows.push(Row::single(format!("{title}: sent"), "requests", None, sent, Promise::None));
        rows.push(Row::single(format!("{title}: failures"), "requests", None, failed, promise));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_same_names_in_every_run_and_no_floor_that_is_none() {
        let title = |burst: &Burst, floor: &Burst| {
            let rows = burst.rows(4, "GET /vms", Some(floor));
            assert!(rows.iter().all(|row| row.floor.is_none_or(|floor| floor > 0.0)), "{rows:?}");
            rows.into_iter().map(|row| row.what).collect::<Vec<_>>()
        };
        let of = |answered, failed| Burst {
            took: vec![Duration::from_millis(1); answered],
            failed,
            lasted: Duration::from_secs(1),
            ..Burst::default()
        };
        assert_eq!(title(&of(3, 0), &of(5, 0)), title(&of(7, 2), &of(0, 9)));
    }
}
