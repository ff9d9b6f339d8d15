//! The host and the server itself.

use crate::disk_usage::{DiskUsage as Usage, PruneSystem, PrunedSystem};
use crate::operation::{AnyJson, ComponentRef, Json, Lines, MetricsText, Nothing, Whole};
use crate::progress::ProgressLine;
use crate::queries::NoQuery;
use crate::system::{Component, Doctor as Findings, Health as Status, HostInfo, Liveness};

crate::rows! {
    /// Show the host
    Info = SYSTEM_INFO, Get "/system/info", Safe, Offered, ((), NoQuery) Nothing => Json<HostInfo>;

    /// Check the host
    Doctor = SYSTEM_DOCTOR, Get "/system/doctor", Safe, Offered, ((), NoQuery) Nothing => Json<Findings>;

    /// Verify every image and kernel
    ///
    /// Lines of type `progress`, then one of type `damage` or `failed`.
    Verify = SYSTEM_VERIFY, Post "/system/verify", Safe, Withheld, ((), NoQuery) Nothing => Lines<ProgressLine>;

    /// Read counters and histograms, as Prometheus reads them
    Metrics = SYSTEM_METRICS, Get "/metrics", Safe, Withheld, ((), NoQuery) Nothing => Whole<MetricsText>;

    /// Show disk space below the root of the server
    ///
    /// Every file counts once, whoever shares it. A prune of everything unused would free `reclaimable_bytes` at least.
    DiskUsage = SYSTEM_DF, Get "/system/df", Safe, Offered, ((), NoQuery) Nothing => Json<Usage>;

    /// Remove what nothing holds
    ///
    /// Without `all`: images without a name, golden snapshots of templates that are no more and unused for 30 days, leftovers, keys of
    /// deleted VMs. VMs and snapshots of users stay. Beside running builds and creations `all` removes no image that has a name, and no
    /// golden snapshot; `kept` says so.
    Prune = SYSTEM_PRUNE, Post "/system/prune", Never, Withheld, ((), PruneSystem) Nothing => Json<PrunedSystem>;

    /// End the server
    ///
    /// VMs keep running; the next server takes them over. Requests under way get ten seconds.
    Stop = SYSTEM_STOP, Post "/system/stop", Never, Withheld, ((), NoQuery) Nothing => Nothing;

    /// Tell whether the server is alive
    Live = SYSTEM_LIVE, Get "/health/live", Safe, Withheld, ((), NoQuery) Nothing => Json<Liveness>;

    /// Show the health of the server
    ///
    /// Every component that requests need is asked.
    Health = SYSTEM_HEALTH, Get "/health", Safe, Withheld, ((), NoQuery) Nothing => Json<Status>;

    /// Show the health of one component
    ///
    /// `store`, `hypervisor`, `disk` or `guests`.
    HealthOf = SYSTEM_HEALTH_COMPONENT, Get "/health/component/{component}", Safe, Withheld, (ComponentRef, NoQuery) Nothing => Json<Component>;

    /// Tell whether the server is ready for requests
    ///
    /// Every component that requests need is asked; 503 with the reasons (`not_ready`) if one is unhealthy.
    Ready = SYSTEM_READY, Get "/health/ready", Safe, Withheld, ((), NoQuery) Nothing => Json<Liveness>;

    /// Read this interface as an OpenAPI document
    OpenApi = SYSTEM_OPENAPI, Get "/openapi.json", Safe, Withheld, ((), NoQuery) Nothing => AnyJson;
}
