//! The host and the server itself.

use crate::operation::{AnyJson, ComponentRef, Json, Lines, MetricsText, Nothing, Whole};
use crate::progress::ProgressLine;
use crate::queries::NoQuery;
use crate::system::{Component, Doctor as Findings, Health as Status, HostInfo, Liveness};

crate::rows! {
    /// Show the host
    Info = "system.info", Get "/system/info", SystemRead, Safe, Offered, ((), NoQuery) Nothing => Json<HostInfo>;

    /// Check the host
    Doctor = "system.doctor", Get "/system/doctor", SystemRead, Safe, Offered, ((), NoQuery) Nothing => Json<Findings>;

    /// Verify every image and kernel
    ///
    /// Lines of type `progress`, then one of type `damage` or `failed`.
    Verify = "system.verify", Post "/system/verify", SystemRead, Safe, Withheld, ((), NoQuery) Nothing => Lines<ProgressLine>;

    /// Read counters and histograms, as Prometheus reads them
    Metrics = "system.metrics", Get "/metrics", SystemRead, Safe, Withheld, ((), NoQuery) Nothing => Whole<MetricsText>;

    /// End the server
    ///
    /// VMs keep running; the next server takes them over. Requests under way get ten seconds.
    Stop = "system.stop", Post "/system/stop", SystemOperate, Never, Withheld, ((), NoQuery) Nothing => Nothing;

    /// Tell whether the server is alive
    Live = "system.live", Get "/health/live", SystemRead, Safe, Withheld, ((), NoQuery) Nothing => Json<Liveness>;

    /// Show the health of the server
    ///
    /// Every component that requests need is asked.
    Health = "system.health", Get "/health", SystemRead, Safe, Withheld, ((), NoQuery) Nothing => Json<Status>;

    /// Show the health of one component
    ///
    /// `store`, `hypervisor`, `disk` or `guests`.
    HealthOf = "system.health_component", Get "/health/component/{component}", SystemRead, Safe, Withheld, (ComponentRef, NoQuery) Nothing => Json<Component>;

    /// Tell whether the server is ready for requests
    ///
    /// Every component that requests need is asked; 503 with the reasons (`not_ready`) if one is unhealthy.
    Ready = "system.ready", Get "/health/ready", SystemRead, Safe, Withheld, ((), NoQuery) Nothing => Json<Liveness>;

    /// Read this interface as an OpenAPI document
    OpenApi = "system.openapi", Get "/openapi.json", SystemRead, Safe, Withheld, ((), NoQuery) Nothing => AnyJson;
}
