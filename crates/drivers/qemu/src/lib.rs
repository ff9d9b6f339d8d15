//! The QEMU driver: machines as confined `qemu-system-x86_64` processes, controlled by QMP events.
//!
//! ```text
//!  launch ─▶ CommandLine ─▶ confinement::spawn ─▶ QMP greeting ─▶ Paused
//!                                                        resume ─▶ Running ⇄ Paused ─▶ Exited
//! ```
//!
//! Families, each using only those below it:
//!
//! ```text
//!  hypervisor   launch, adopt, sweep, standby
//!  machine      one living machine: state by events, record, VMMs that wait
//!  branch       saving in one short pause, loading, flattening
//!  process      command line, cage, user ids, logs        disks    nodes, descriptors, answers
//!  control      QMP                                       probe    host, hardware, needs of saved states
//!  memory       the guest's memory as the host sees it
//! ```
//!
//! State is fed by QMP events and by the process descriptor, never by polling. What this driver does *not* do: make
//! disks, speak to the guest, or decide anything.

mod branch;
mod config;
mod control;
mod disks;
mod hypervisor;
mod machine;
mod memory;
mod probe;
mod process;
mod recipe;

pub use config::{AcceleratorChoice, QemuConfig};
pub use hypervisor::Qemu;
pub use probe::NAME;
pub use recipe::Recipe;
