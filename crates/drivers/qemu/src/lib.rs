//! The QEMU driver: machines as confined `qemu-system-x86_64` processes, controlled by QMP events.
//!
//! ```text
//!  launch ─▶ CommandLine ─▶ confinement::spawn ─▶ QMP greeting ─▶ Paused
//!                                                        resume ─▶ Running ⇄ Paused ─▶ Exited
//! ```
//!
//! State is fed by QMP events and by the process descriptor, never by polling. What this driver does *not* do: make
//! disks, speak to the guest, or decide anything.

mod accelerator;
mod bare;
mod branch;
mod command_line;
mod compatibility;
mod config;
mod console;
mod disks;
mod flatten;
mod host_memory;
mod hypervisor;
mod incoming;
mod machine;
mod memory;
mod new_tops;
mod probe;
mod process;
mod qmp;
mod shares;
mod socket;
mod state_file;
mod timestamp_counter;
mod usage;
mod users;
mod waiting;

pub use config::{AcceleratorChoice, QemuConfig};
pub use hypervisor::Qemu;
