//! Files that outlive a process, and the blocking work that makes them.
//!
//! ```text
//!   Workspace (tmp/, locked) ─▶ write, sync ─▶ rename ─▶ sync of the directory
//!        │                        │
//!        │                        ├ manifest: version, checksum, body      Room: promises against a limit of disk space
//!        └ removed on drop        └ stamp: verified once, known until it changes
//!   blocking(…) ─▶ Cancel ─▶ stops the work and kills the tools that it runs
//! ```
//!
//! Every failure is a [`StorageError`](microvm_ports::StorageError), and a full disk always the same one. What this crate
//! does *not* do: know what is stored, or where.

pub mod cancel;
pub mod device;
pub mod error;
pub mod files;
pub mod manifest;
pub mod room;
pub mod stamp;
pub mod tool;
pub mod workspace;
