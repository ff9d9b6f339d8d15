//! Starts a VMM process that outlives the server and can touch next to nothing.
//!
//! The server does not start a VMM itself. It starts a small *supervisor* (this same program, hidden command
//! [`SUPERVISOR_COMMAND`]), which prepares the cage, waits for the server's last word, and then starts the VMM in it:
//!
//! ```text
//!  server ──spec──▶ supervisor ──clone(namespaces)──▶ child: builds its file system, drops everything
//!         ◀─ready──     │  writes process.json                │
//!         ──go────▶     ├───────────────go───────────────────▶│ exec VMM
//!         ◀─started─    │                                     │
//!     (socket closes)   │ pumps console and stderr into capped files
//!                       ▼ waits, writes exit.json, removes the cgroups, ends
//! ```
//!
//! If the server dies before "go", the supervisor ends and takes the child with it; if it dies later, `process.json`
//! tells the next server what is running. So at no moment is there a VMM that nobody could find.
//!
//! Layers, each on if the host offers it, and reported by [`layers()`]: own user id, user/mount/pid/network/ipc/uts
//! namespaces, a root file system of its own, no capabilities, no new privileges, Landlock, cgroup limits. The VMM's
//! own system call filter comes on top. What this crate does *not* do: know a VMM's command line.

mod cage;
mod capped_log;
mod cgroup;
mod clone;
mod descriptors;
mod filters;
mod first_call;
mod handshake;
mod layers;
mod process;
mod spawn;
mod spec;
mod supervisor;

pub use cage::folders::FOLDER_STEP;
pub use capped_log::{CappedLog, LogPart, read as read_log, tail};
pub use layers::{CGROUP_LIMITS, CPU_LIMIT, Layer, layers};
pub use process::ProcessIdentity;
pub use process::record::{ExitRecord, ProcessRecord};
pub use process::stray::end_strays;
pub use spawn::{SpawnError, Spawned, spawn};
pub use spec::{CageSpec, FileOwner, Folder, Listener, Mount, MountAccess, OpenFile};
pub use supervisor::supervise;

/// First argument of the program that makes it a supervisor.
pub const SUPERVISOR_COMMAND: &str = "__supervise-vmm";
