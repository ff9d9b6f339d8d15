//! The nouns of microvm-sandbox: ids, names, sizes, templates, lifecycle.
//!
//! Pure data and pure functions: no I/O, no clock, no runtime. Everything here can be used by any other crate,
//! the guest agent excepted (it speaks `microvm-protocol` only). What it does *not* do: parse configuration files,
//! know a hypervisor, or hold state.
//!
//! The lifecycle of a VM (see [`lifecycle`]):
//!
//! ```text
//!            ┌────────────┐  Started   ┌─────────┐ Pause ┌────────┐
//!  Creating ─┤  Starting  ├───────────▶│ Running ├──────▶│ Paused │   (or Pooled, until a claim)
//!     │      └─▲───────┬──┘            └─┬─┬───▲─┘       └─┬──┬───┘
//!     │  Start │       │ failed     Stop │ │   └──Resume───┘  │
//!     ▼        │       ▼                 ▼ └──── lost ──────┐ │
//!  Stopped ────┘    Failed ◀──────── Stopping ──▶ Stopped   ▼ ▼   (or Hibernated)
//!     └────────────────┴──────── Delete ──▶ Deleting ──▶ Deleted
//! ```

pub mod caller;
pub mod error_kind;
pub mod exec;
pub mod extents;
mod file_time;
pub mod files;
pub mod guest;
pub mod hook;
pub mod id;
pub mod image;
pub mod kernel;
mod last_stop;
pub mod life;
pub mod lifecycle;
pub mod name;
pub mod operation;
mod path_style;
pub mod pool;
pub mod remedy;
pub mod share;
mod shown;
pub mod size;
pub mod snapshot;
mod stored;
pub mod template;
pub mod unreadable;
pub mod vm;
pub mod volume;

pub use caller::{Caller, Permission};
pub use error_kind::ErrorKind;
pub use id::{ProcessId, SnapshotId, VmId, VolumeId};
pub use last_stop::{LastStop, StopReason};
pub use life::Life;
pub use lifecycle::{Denied, LifecycleEvent, Phase};
pub use name::{Name, NameError, VmRef};
pub use operation::OperationName;
pub use path_style::PathStyle;
pub use remedy::{Action, Remedy};
pub use share::{Share, ShareChanges, ShareError};
pub use size::{ByteSize, SizeError};
pub use stored::StoredKind;
pub use unreadable::{Listed, Unreadable};
pub use volume::{VolumeMount, VolumeRecord};
