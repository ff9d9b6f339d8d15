//! State that outlives the server, in SQLite.
//!
//! One file, one table of VMs. A row holds the whole record as JSON with a format version and a SHA-256, and beside it
//! the few columns the database itself must know (tenant and name for uniqueness, creation for order). Every write is
//! one transaction in a write-ahead log that is synced before the call returns, so a `kill -9` at any moment loses
//! nothing that was reported as written. Damage to a row is found when it is read, never passed on.
//!
//! What it does *not* do: decide what a record means, hide a newer database, or repair a damaged one.

mod error;
mod migrations;
mod queries;
mod row;
mod sqlite;

pub use error::OpenError;
pub use migrations::SCHEMA_VERSION;
pub use sqlite::SqliteStore;
