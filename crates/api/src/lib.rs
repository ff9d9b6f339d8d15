//! The REST interface, version 1, as data: operations with their paths, queries, bodies and answers.
//!
//! ```text
//!  operations (one row each) ─▶ document: OpenAPI        server: route, permission, typed handler
//!      of queries, bodies                                client: method, path, query, answer
//! ```
//!
//! Data only: server and client share these types, so neither can drift from the other. What this crate does *not*
//! do: speak HTTP, decide anything, or know the ports. Its only functions are the encodings that both sides must
//! agree on (queries in [`query`], instants as text in [`time`], hints in [`meant`]) and the [`document`].
//!
//! Everything below [`PREFIX`] is versioned; a change that breaks a client makes a new version beside this one.

pub mod advice;
mod command_line;
pub mod context;
pub mod disk_usage;
pub mod document;
pub mod exec;
pub mod files;
pub mod guest;
pub mod image;
pub mod kernel;
pub mod meant;
pub mod milliseconds;
pub mod operation;
pub mod operations;
pub mod output;
pub mod pool;
pub mod problem;
pub mod progress;
pub mod queries;
pub mod query;
pub mod remedy;
pub mod schemas;
pub mod snapshot;
pub mod system;
pub mod time;
pub mod vm;
pub mod volume;

pub use microvm_types::OperationName;
pub use microvm_types::caller::Permission;
pub use problem::Problem;
pub use vm::{CreateVm, Vm, VmList};

/// Prefix of every path of this version.
pub const PREFIX: &str = "/api/v1";

/// Largest JSON request body in bytes (1 MiB); most routes take 64 KiB.
pub const JSON_BODY_MAX: usize = 1 << 20;

/// Header and trailer that carry the SHA-256 of a body in lower-case hexadecimal.
pub const SHA256_HEADER: &str = "x-content-sha256";

/// Header that carries the id of a request, in both directions.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

/// Trailer of an archive download that says what is not in it, as [`microvm_types::files::LeftOut`] in JSON; see
/// [`files::left_out_text`]. Missing where the guest's agent is older than this.
pub const LEFT_OUT_HEADER: &str = "x-left-out";

/// Header of a part of a console: offset of its first byte, counted over all that the VM ever wrote there. What is before it
/// is not in the answer.
pub const OFFSET_HEADER: &str = "x-offset";

/// Header of a part of a console: offset after the newest byte. What is between the end of the answer and it can be had
/// from there on.
pub const END_HEADER: &str = "x-end";

/// Header of a list that is a plain array: how many more there are that cannot be read.
pub const UNREADABLE_HEADER: &str = "x-unreadable";

/// Header of a file download that carries what the file is, as [`microvm_types::files::FileStat`] in JSON.
pub const FILE_STAT_HEADER: &str = "x-file-stat";
