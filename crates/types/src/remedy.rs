//! What a caller can do about a failure.
//!
//! Libraries name the action; each edge says it in its own words: the command line as a command, REST as a request, MCP as a
//! tool. So a message is right for whoever reads it.

use serde::{Deserialize, Serialize};

/// Something that can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Action {
    /// Start the server.
    StartServer,
    /// See which VMs there are.
    ListVms,
    /// Delete a VM.
    RemoveVm,
    /// Start a VM that is stopped, hibernated or failed.
    StartVm,
    /// Boot a VM from its disk, without what was in its memory.
    StartVmCold,
    /// Stop and start a VM.
    RestartVm,
    /// Delete a VM whose disk files cannot take what it wrote.
    ForgetDisks,
    /// Let a paused VM run.
    ResumeVm,
    /// End a VM whose agent does not answer.
    StopVmByForce,
    /// See what the kernel of a VM printed.
    ShowConsole,
    /// Copy files between host and guest.
    CopyFiles,
    /// See which images there are.
    ListImages,
    /// Build an image from packages.
    BuildImage,
    /// Fetch an image from a registry.
    PullImage,
    /// See which kernels there are.
    ListKernels,
    /// Build the kernel that boots fastest and has every feature that is offered.
    BuildKernel,
    /// Take the distribution's kernel, which needs no compiler.
    TakeDistributionKernel,
    /// See which snapshots there are.
    ListSnapshots,
    /// Remove a snapshot.
    RemoveSnapshot,
    /// Make a new VM of a snapshot.
    RestoreSnapshot,
    /// See which golden snapshots a template has.
    ListGoldenSnapshots,
    /// See which pools there are.
    ListPools,
    /// Remove a pool.
    RemovePool,
    /// Let a pool have more VMs.
    ResizePool,
    /// See which volumes there are.
    ListVolumes,
    /// Have the operator of the server raise a limit; its name is that of the field that it bounds.
    RaiseLimit,
}

impl Action {
    /// All actions, for tables and tests.
    pub const ALL: [Self; 26] = [
        Self::StartServer,
        Self::ListVms,
        Self::RemoveVm,
        Self::StartVm,
        Self::StartVmCold,
        Self::RestartVm,
        Self::ForgetDisks,
        Self::ResumeVm,
        Self::StopVmByForce,
        Self::ShowConsole,
        Self::CopyFiles,
        Self::ListImages,
        Self::BuildImage,
        Self::PullImage,
        Self::ListKernels,
        Self::BuildKernel,
        Self::TakeDistributionKernel,
        Self::ListSnapshots,
        Self::RemoveSnapshot,
        Self::RestoreSnapshot,
        Self::ListGoldenSnapshots,
        Self::ListPools,
        Self::RemovePool,
        Self::ResizePool,
        Self::ListVolumes,
        Self::RaiseLimit,
    ];

    /// It, for whichever thing the reader has in mind.
    #[must_use]
    pub const fn any(self) -> Remedy {
        Remedy { action: self, of: None }
    }

    /// It, for the thing of this name.
    #[must_use]
    pub fn of(self, name: impl ToString) -> Remedy {
        Remedy { action: self, of: Some(name.to_string()) }
    }
}

/// An action, and what it is to be done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Remedy {
    /// What to do.
    pub action: Action,
    /// Name of the VM, image, snapshot, template, pool or limit, where the failure knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_all() {
        // The last of the declaration: whoever adds one below it finds this line.
        assert_eq!(Action::RaiseLimit as usize + 1, Action::ALL.len());
        for (place, action) in Action::ALL.into_iter().enumerate() {
            assert_eq!(action as usize, place);
        }
    }
}
