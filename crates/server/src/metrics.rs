//! Counters and histograms, as Prometheus reads them.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use microvm_core::{Event, Observer, What};

/// Bounds of the buckets of durations, in seconds: from a warm VM in a blink to a cold boot on a busy host.
const SECONDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// Interval at which records are put into their buckets. Until then each record takes 16 bytes.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// The recorder of this process, installed at the first call. `None` if another one was installed before.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    let install = || {
        let builder = PrometheusBuilder::new();
        let builder =
            builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS).ok()?;
        let handle = builder.install_recorder().ok()?;
        metrics::describe_histogram!(
            "microvm_pool_acquire_duration_seconds",
            metrics::Unit::Seconds,
            "From the wish for a VM of a pool to a VM that answers, by where it came from"
        );
        metrics::describe_histogram!(
            "microvm_branch_pause_seconds",
            metrics::Unit::Seconds,
            "How long a VM stood still for a fork or a snapshot"
        );
        metrics::describe_histogram!(
            "microvm_vm_start_duration_seconds",
            metrics::Unit::Seconds,
            "From the launch of a machine to its agent's answer, by how it began"
        );
        Some(handle)
    };
    RECORDER.get_or_init(install).as_ref()
}

/// Counts what happens.
#[derive(Debug)]
pub(crate) struct Counting;

impl Observer for Counting {
    fn note(&self, event: &Event) {
        match &event.what {
            What::Started { boot, took } => {
                let from = if *boot { "boot" } else { "state" };
                metrics::histogram!("microvm_vm_start_duration_seconds", "from" => from).record(*took);
            }
            What::Branched { pause, .. } => {
                metrics::histogram!("microvm_branch_pause_seconds").record(*pause)
            }
            What::Acquired { tier, took } => {
                let tier = tier.as_str();
                metrics::histogram!("microvm_pool_acquire_duration_seconds", "tier" => tier).record(*took);
            }
            // VMs in each phase are counted when they are asked for.
            What::Phase { .. } => {}
        }
    }
}

/// Keeps the records of histograms from piling up in a server that nobody asks for its metrics. Never ends.
pub(crate) async fn upkeep() -> std::convert::Infallible {
    let Some(recorder) = recorder() else { return std::future::pending().await };
    let mut interval = tokio::time::interval(UPKEEP);
    // One run puts away all that piled up: missed ones need no making up for.
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        recorder.run_upkeep();
    }
}

/// VMs of one pool.
pub(crate) struct PoolSize<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) pool: &'a str,
    pub(crate) ready: usize,
    pub(crate) handed_out: usize,
}

/// Series of pools. Written from the pools there are, so that those of a deleted pool end with it; the recorder would keep
/// them for ever.
pub(crate) fn pool_sizes<'a>(pools: impl Iterator<Item = PoolSize<'a>>) -> String {
    let mut text = String::new();
    for (index, PoolSize { tenant, pool, ready, handed_out }) in pools.enumerate() {
        if index == 0 {
            text.push_str("# HELP microvm_pool_size VMs of a pool\n# TYPE microvm_pool_size gauge\n");
        }
        let tenant = tenant.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        for (state, count) in [("ready", ready), ("handed_out", handed_out)] {
            // Names of pools hold no character that the format would have to escape. Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "microvm_pool_size{{tenant=\"{tenant}\",pool=\"{pool}\",state=\"{state}\"}} {count}"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of memory that this process has.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_nobody_reads_do_not_pile_up() {
        const RECORDS: u32 = 1_000_000;
        recorder().unwrap();
        let task = tokio::spawn(upkeep());
        let histogram = metrics::histogram!("test_duration_seconds");
        let mut sizes = Vec::new();
        for _ in 0..5 {
            for _ in 0..RECORDS {
                histogram.record(0.01);
            }
            tokio::time::sleep(2 * UPKEEP).await;
            sizes.push(resident());
        }
        task.abort();
        // The first round may grow what is used again afterwards; the four later ones have 64 MB of records.
        let growth = sizes[4].saturating_sub(sizes[0]);
        assert!(growth < 32 << 20, "grew by {growth} bytes: {sizes:?}");
        assert!(recorder().unwrap().render().contains("test_duration_seconds_count 5000000"));
    }

    #[test]
    fn pools_have_series_while_they_exist() {
        assert_eq!(pool_sizes([].into_iter()), "");
        let size = |tenant, pool, handed_out| PoolSize { tenant, pool, ready: 1, handed_out };
        let text = pool_sizes([size("local", "a", 2), size("a \"b\" \\", "a", 3)].into_iter());
        assert_eq!(text.matches("# TYPE").count(), 1);
        let series = |tenant: &str| {
            format!("microvm_pool_size{{tenant=\"{tenant}\",pool=\"a\",state=\"handed_out\"}}")
        };
        assert!(text.contains(&format!("{} 2\n", series("local"))), "{text}");
        assert!(text.contains(&format!("{} 3\n", series(r#"a \"b\" \\"#))), "{text}");
    }
}
