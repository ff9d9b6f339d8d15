//! The VM service: lifecycle actors, admission, templates, adoption after a restart.
//!
//! Core sees traits only ([`microvm_ports`]); it does not know a hypervisor, a file format or HTTP.
//!
//! ```text
//!  VmService ── create/list/get ──▶ registry: id, name ▶ VmHandle
//!      │                                              │ commands (mpsc, reply by oneshot)
//!      │                                              ▼
//!      │                                        VmActor (one task per VM, owns record and machine)
//!      │                                              │ publishes Snapshot by watch
//!      └── guest(): admission by phase ◀──────────────┘
//! ```
//!
//! Commands to one VM are done one after the other by its actor; work inside a guest (exec, files) goes past the
//! actor, straight to the channel, so that it never waits for anything but the guest.

mod abandoned;
mod activity;
mod actor;
mod admission;
mod error;
mod events;
mod hooks;
mod image_build;
mod lease;
mod own_command;
mod pools;
mod ports;
mod reconcile;
mod registry;
mod room;
mod service;
mod settings;
mod shares;
mod snapshots;
mod start;
mod templates;
mod unreadable;
mod view;
mod waiting;

pub use error::ServiceError;
pub use events::VmEvent;
pub use image_build::{ImageBase, ImageRecipe};
pub use lease::GuestLease;
pub use pools::{AcquireRequest, PoolChange, PoolRequest, PoolView, Tier};
pub use ports::Ports;
pub use reconcile::StrayVm;
pub use service::{BootChoice, CreateRequest, VmService};
pub use settings::{HostLimits, Settings};
pub use snapshots::{
    BegunSnapshot, ForkRequest, Forked, GoldenVersion, RestoreRequest, Snapshot, SnapshotFilter,
    SnapshotRequest, SnapshotStatistics,
};
pub use templates::{TemplateError, TemplateSet, TemplateSource};
pub use view::{Unreachable, VmFilter, VmView};
