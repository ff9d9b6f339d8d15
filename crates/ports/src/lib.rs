//! The ports of microvm-sandbox: what core needs from the outside, as small object-safe traits with typed errors.
//!
//! ```text
//!   core ──▶ Hypervisor · GuestConnector · ImageStore · VmStorage · StateStore · Clock ◀── drivers
//!
//!   modules:  snapshot ─▶ storage ─▶ guest        hypervisor ─▶ machine ─▶ branch ─▶ guest
//!                  └────▶ branch                       └──────────┴──────────┴─────▶ device, failure
//! ```
//!
//! A port promises order and cancellation, not only signatures: unless a method says otherwise, dropping its future
//! leaves the outside as if it had not been called or as if it had finished, never in between, and calling it again is
//! safe. What it does *not* do: hold state, know a driver, or decide policy.

pub mod branch;
pub mod capabilities;
pub mod clock;
pub mod device;
pub mod failure;
pub mod guest;
pub mod hooks;
pub mod hypervisor;
pub mod machine;
pub mod pace;
pub mod progress;
pub mod snapshot;
pub mod state;
pub mod state_parts;
pub mod storage;
pub mod waiting;

pub use branch::{BranchError, Brancher};
pub use clock::Clock;
pub use guest::archive::{self, Holes, PulledArchive, PushedArchive};
pub use guest::content;
pub use guest::{Guest, GuestConnector, GuestError};
pub use hooks::{HookError, HookRunner};
pub use hypervisor::{Hypervisor, LaunchError, Machine, MachineError};
pub use pace::Pace;
pub use progress::Progress;
pub use snapshot::SnapshotStore;
pub use state::{DocumentKind, StateError, StateStore, StoredDocuments, StoredVms};
pub use state_parts::StateParts;
pub use storage::{ImageStore, KernelStore, StorageError, VmStorage, VolumeStore};
