//! `microvm vm VERB`: the spellings of another program for the verbs of this one. Hidden.

use clap::Subcommand;

use crate::commands::{create, exec, inspect, lifecycle, ls, rm};

/// Verbs for VMs in a group of their own.
#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Create a VM and start it
    Create(Box<create::Create>),
    /// Start stopped VMs
    Start(lifecycle::Start),
    /// Shut down VMs; their disks stay
    Stop(lifecycle::Stop),
    /// Pause running VMs; their memory stays
    Pause(lifecycle::Targets),
    /// Resume paused VMs
    Resume(lifecycle::Targets),
    /// Show everything about a VM
    Info(inspect::Inspect),
    /// List VMs
    List(ls::Ls),
    /// Run a command in a running VM
    Exec(exec::Exec),
    /// Delete VMs, running ones included
    Delete(rm::Rm),
}
