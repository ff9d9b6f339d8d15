//! Verbs of several requests, which every edge over the client shares: the command line, bindings, tools of AI clients.
//!
//! ```text
//!   Claim::create ─▶ Workspace::prepare ─▶ Client::exec ─▶ ExecStream::collect ─▶ Workspace::gather ─▶ delete
//!   ForkAndRun::fork ─▶ ForkAndRun::run ─▶ ChildRun, one for each child
//! ```
//!
//! Nothing here prints or reads a terminal: outcomes are values, and what may be left behind on the server is reported as
//! [`Leftover`]. The caller asks for an early end through [`EndRequests`].

mod claim;
mod collect;
mod end_requests;
mod entry_point;
mod fork_and_run;
mod leftover;
mod script;
mod workspace;

pub use claim::{Claim, Creation, random_name};
pub use collect::CollectedOutput;
pub use end_requests::{EndRequests, GRACE, Never, pass_on};
pub use entry_point::entry_point;
pub use fork_and_run::{ChildRun, CommandFailure, ForkAndRun, ForkedRun, numbered};
pub use leftover::{CLAIM_LABEL, Leftover, delete, temporary};
pub use script::Script;
pub use workspace::{Gathered, Workspace};
