//! The engine: lifecycle actors, admission, branches, golden snapshots, pools, adoption after a restart.
//!
//! Core sees traits only ([`microvm_ports`]); it does not know a hypervisor, a file format or HTTP.
//!
//! ```text
//!  Engine ── as_caller(&Caller) ──▶ Services { vms, branches, snapshots, goldens, pools, catalog, exports, volumes, host }
//!                                       │ look-ups in the caller's tenant, commands
//!                                       ▼
//!             registry: id, tenant and name ▶ VmHandle ── commands (mpsc, reply by oneshot) ──▶ VmActor
//!                                               ▲                                one task per VM, owns record and machine
//!                                               └──────────── Published, by watch ◀──────────────┘
//! ```
//!
//! Commands to one VM are done one after the other by its actor; work inside a guest (exec, files) goes past the
//! actor, straight to the channel, so that it never waits for anything but the guest.
//!
//! Modules use those of groups above theirs only (`tests/modules.rs` holds them to it): what is stored in memory (`state`), bringing machines up (`launch`), one VM (`vm`),
//! the caller's context, making one VM (`creation`), snapshots that were taken (`kept`), branches (`branch`), golden
//! snapshots (`golden`), VMs as callers see them (`vms`), then pools, volumes, the catalog, the host and the engine.

mod template_source;

mod error;
mod events;
mod settings;
mod undo;

mod hypervisors;

mod ports;

mod state;

mod launch;

mod vm;

mod admission;
mod context;

mod creation;
mod kept;

mod branch;

mod golden;

mod vms;

mod catalog;
mod pools;
mod volumes;

mod host;

mod engine;

pub use branch::{BegunSnapshot, Branches, ForkRequest, Forked, RestoreRequest, SnapshotRequest};
pub use catalog::{Catalog, Exports, ImageBase, ImageRecipe, RootChanges};
pub use creation::{BootChoice, CreateRequest};
pub use engine::{Engine, Services};
pub use error::{Bound, ServiceError};
pub use events::{Cause, Event, Events, Observer, Tier, What};
pub use golden::{GoldenVersion, Goldens};
pub use host::{ComponentHealth, Holdings, Host, HostUnreadable, Prunable, PruneExtent, PruneOutcome};
pub use hypervisors::Hypervisors;
pub use kept::{Pruned, SnapshotFilter, SnapshotStatistics, Snapshots, SnapshotsOfVm};
pub use pools::{AcquireRequest, PoolChange, PoolRequest, PoolView, Pools};
pub use ports::Ports;
pub use settings::{HostLimits, Settings};
pub use state::Snapshot;
pub use template_source::{TemplateError, TemplateSet, TemplateSource};
pub use vm::change::{LimitsChange, VmChange};
pub use vm::lease::{Boot, GuestLease};
pub use vm::view::{Unreachable, VmFilter, VmView};
pub use vms::reconcile::StrayVm;
pub use vms::{VmStats, Vms, Wanted};
pub use volumes::{VolumeView, Volumes};
