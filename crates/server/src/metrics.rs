//! Counters and histograms, as Prometheus reads them.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of the buckets of durations, in seconds: from a warm VM in a blink to a cold boot on a busy host.
const SECONDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

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
