//! Class, code and remedies of each failure: the tables that edges render.

use microvm_ports::guest::GuestError;
use microvm_ports::{BranchError, LaunchError, StateError, StorageError};
use microvm_types::lifecycle::Denied;
use microvm_types::{Action, ErrorKind, Phase, Remedy};

use super::{Bound, ServiceError};

impl ServiceError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Forbidden { .. } => ErrorKind::Forbidden,
            Self::UnknownVm(_) | Self::UnknownTemplate { .. } | Self::UnknownVolume(_) => ErrorKind::NotFound,
            Self::Invalid { .. }
            | Self::AmbiguousVm { .. }
            | Self::OtherVmsSnapshot { .. }
            | Self::NoOlderGolden { .. }
            | Self::OverLimit { .. }
            | Self::BuildCommand { .. }
            | Self::UnknownHypervisor { .. }
            | Self::Template(_) => ErrorKind::Invalid,
            Self::TooManyVms { .. } | Self::NoneLeft { .. } => ErrorKind::Exhausted,
            Self::Network(_)
            | Self::NoBalloon
            | Self::NoBalloonDriver { .. }
            | Self::NoProcessorHotplug(_)
            | Self::NoBranching
            | Self::WritableDisk(_)
            | Self::SharedFolder { .. }
            | Self::NoSharing
            | Self::KernelWithoutShares { .. } => ErrorKind::Unsupported,
            Self::Branch(error) => error.kind(),
            Self::UnknownPool(_) => ErrorKind::NotFound,
            Self::PoolExhausted { .. } => ErrorKind::Exhausted,
            Self::SnapshotNameTaken(_)
            | Self::VolumeNameTaken(_)
            | Self::VolumeInUse { .. }
            | Self::VolumeHasVms { .. }
            | Self::VolumeUnclear { .. }
            | Self::VolumeUsersUnknown { .. }
            | Self::NoCommand(_)
            | Self::FailedMeanwhile { .. }
            | Self::PoolNameTaken(_)
            | Self::UnreadablePool { .. }
            | Self::UsersUnknown { .. } => ErrorKind::Conflict,
            Self::NoRoomForForks { .. } => ErrorKind::Exhausted,
            Self::Fork { cause, .. }
            | Self::CannotWake { cause, .. }
            | Self::UnprovenGolden { cause, .. }
            | Self::UnprovenSnapshot { cause, .. } => cause.kind(),
            Self::Denied(_) | Self::NotRunning(_) | Self::NoRoom | Self::Overtaken(_) | Self::Hook { .. } => {
                ErrorKind::Conflict
            }
            Self::Boot { kind, .. } => *kind,
            Self::ShuttingDown | Self::Unreachable { .. } | Self::ExportsBusy { .. } => {
                ErrorKind::Unavailable
            }
            Self::Storage(error) | Self::KeptByDisk { cause: error, .. } => error.kind(),
            Self::State(error) => error.kind(),
            Self::Launch(error) => error.kind(),
            Self::Machine(error) => error.kind(),
            Self::Guest(error) => error.kind(),
        }
    }

    /// Remedies, the most promising one first.
    #[must_use]
    pub fn remedies(&self) -> Vec<Remedy> {
        match self {
            Self::UnknownVm(_) | Self::AmbiguousVm { .. } => vec![Action::ListVms.any()],
            Self::FailedMeanwhile { vm, .. } => vec![Action::ShowConsole.of(vm), Action::StartVm.of(vm)],
            Self::OverLimit { field, bound: Bound::Operator, .. } => vec![Action::RaiseLimit.of(field)],
            Self::TooManyVms { .. } => {
                vec![Action::ListVms.any(), Action::RemoveVm.any(), Action::RaiseLimit.of("vms")]
            }
            Self::NoneLeft { what, .. } => {
                let raise = Action::RaiseLimit.of(format!("total_{what}"));
                vec![Action::ListVms.any(), Action::RemoveVm.any(), raise]
            }
            Self::NotRunning(phase) | Self::Denied(Denied { phase, .. }) => match phase {
                Phase::Paused => vec![Action::ResumeVm.any()],
                Phase::Stopped | Phase::Hibernated | Phase::Failed => vec![Action::StartVm.any()],
                _ => Vec::new(),
            },
            Self::Unreachable { vm, .. } => vec![Action::ShowConsole.of(vm), Action::StopVmByForce.of(vm)],
            Self::NoBranching => vec![Action::RestartVm.any()],
            Self::SharedFolder { .. } | Self::NoSharing => vec![Action::CopyFiles.any()],
            Self::KernelWithoutShares { .. } => vec![Action::BuildKernel.any()],
            Self::CannotWake { vm, .. } => vec![Action::StartVmCold.of(vm)],
            Self::KeptByDisk { vm, .. } => vec![Action::ForgetDisks.of(vm)],
            Self::SnapshotNameTaken(name) => vec![Action::RemoveSnapshot.of(name)],
            Self::UnknownVolume(_) => vec![Action::ListVolumes.any()],
            Self::UnknownPool(_) => vec![Action::ListPools.any()],
            Self::PoolNameTaken(name) => vec![Action::RemovePool.of(name)],
            Self::PoolExhausted { pool, .. } => vec![Action::ResizePool.of(pool)],
            Self::OtherVmsSnapshot { snapshot, .. } => vec![Action::RestoreSnapshot.of(snapshot)],
            Self::NoOlderGolden { template } => vec![Action::ListGoldenSnapshots.of(template)],
            Self::Storage(error) => error.remedies(),
            Self::UnprovenSnapshot { name, .. } => {
                vec![Action::RestoreSnapshot.of(name), Action::RemoveSnapshot.of(name)]
            }
            Self::Fork { cause, .. } | Self::UnprovenGolden { cause, .. } => cause.remedies(),
            _ => Vec::new(),
        }
    }

    /// A stable word for programs; never changes once published.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Forbidden { .. } => "permission_missing",
            Self::UnknownVm(_) => "vm_not_found",
            Self::AmbiguousVm { .. } => "vm_ambiguous",
            Self::NoCommand(_) => "no_command",
            Self::FailedMeanwhile { .. } => "vm_failed",
            Self::UnknownTemplate { .. } => "template_not_found",
            Self::Template(_) => "template_unusable",
            Self::Invalid { .. } | Self::OtherVmsSnapshot { .. } | Self::NoOlderGolden { .. } => {
                "invalid_field"
            }
            Self::OverLimit { .. } => "over_limit",
            Self::TooManyVms { .. } => "too_many_vms",
            Self::NoneLeft { .. } => "limit_reached",
            Self::Network(_) => "network_mode_unavailable",
            Self::Denied(_) => "wrong_phase",
            Self::NotRunning(_) | Self::NoRoom => "vm_not_running",
            Self::Unreachable { .. } => "vm_unreachable",
            Self::Boot { .. } => "boot_failed",
            Self::Overtaken(_) => "overtaken",
            Self::ExportsBusy { .. } => "exports_busy",
            Self::Hook { .. } => "hook_refused",
            Self::BuildCommand { .. } => "build_command_failed",
            Self::NoBalloon => "no_balloon",
            Self::NoBalloonDriver { .. } => "no_balloon_driver",
            Self::NoProcessorHotplug(_) => "no_processor_hotplug",
            Self::NoBranching => "no_branching",
            Self::WritableDisk(_) => "disk_not_shareable",
            Self::SharedFolder { .. } => "share_not_branchable",
            Self::UnknownHypervisor { .. } => "unknown_hypervisor",
            Self::NoSharing => "sharing_unsupported",
            Self::KernelWithoutShares { .. } => "kernel_without_shares",
            Self::CannotWake { .. } => "vm_cannot_wake",
            Self::KeptByDisk { .. } => "disk_not_written_back",
            Self::UnprovenGolden { .. } => "golden_snapshot_unfit",
            Self::UnprovenSnapshot { .. } => "snapshot_unproven",
            Self::Branch(BranchError::NoMemory { .. }) => "host_memory_short",
            Self::Branch(_) => "branch_failed",
            Self::UnknownPool(_) => "pool_not_found",
            Self::PoolNameTaken(_) => "pool_name_taken",
            Self::UnreadablePool { .. } => "pool_unreadable",
            Self::UsersUnknown { .. } => "image_users_unknown",
            Self::PoolExhausted { .. } => "pool_exhausted",
            Self::SnapshotNameTaken(_) => "snapshot_name_taken",
            Self::UnknownVolume(_) => "volume_not_found",
            Self::VolumeNameTaken(_) => "volume_name_taken",
            Self::VolumeInUse { .. } => "volume_in_use",
            Self::VolumeHasVms { .. } => "volume_has_vms",
            Self::VolumeUnclear { .. } => "volume_unclear",
            Self::VolumeUsersUnknown { .. } => "volume_users_unknown",
            Self::NoRoomForForks { .. } => "host_memory_short",
            Self::Fork { cause, .. } => cause.code(),
            Self::ShuttingDown => "shutting_down",
            Self::Storage(error) => storage_code(error),
            Self::State(StateError::NameTaken(_)) => "vm_name_taken",
            Self::State(StateError::Full { .. }) => "disk_full",
            Self::State(_) => "state_failed",
            Self::Launch(error) => launch_code(error),
            Self::Machine(_) => "machine_failed",
            Self::Guest(error) => guest_code(error),
        }
    }
}

const fn storage_code(error: &StorageError) -> &'static str {
    match error {
        StorageError::UnknownImage(_) => "image_not_found",
        StorageError::AmbiguousImage { .. } => "image_ambiguous",
        StorageError::UnknownKernel(_) | StorageError::NoKernel => "kernel_not_found",
        StorageError::UnknownSnapshot(_) => "snapshot_not_found",
        StorageError::Damaged { .. } => "damaged",
        StorageError::BadInput { .. } => "bad_input",
        StorageError::InUse { .. } => "in_use",
        StorageError::NameTaken(_) => "name_taken",
        StorageError::NotWrittenBack { .. } => "disk_not_written_back",
        StorageError::HalfWrittenBack { .. } => "disk_half_written_back",
        StorageError::DiskFull { .. } => "disk_full",
        StorageError::OverDiskLimit { .. } => "disk_limit",
        StorageError::ToolMissing { .. } => "tool_missing",
        StorageError::ToolFailed { .. } => "tool_failed",
        StorageError::Registry(_) => "registry_failed",
        StorageError::Io { .. } => "storage_failed",
    }
}

const fn launch_code(error: &LaunchError) -> &'static str {
    match error {
        LaunchError::ProgramMissing { .. } => "hypervisor_missing",
        LaunchError::ProgramTooOld { .. } => "hypervisor_too_old",
        LaunchError::Spec(_) => "machine_impossible",
        LaunchError::Incompatible { .. } => "state_incompatible",
        LaunchError::Share(_) => "share_failed",
        LaunchError::BadState(_) => "state_refused",
        LaunchError::NoMemory { .. } => "host_memory_short",
        LaunchError::Process { .. } | LaunchError::Died { .. } => "launch_failed",
        LaunchError::Timeout { .. } => "launch_timeout",
        LaunchError::Gone(_) => "machine_gone",
    }
}

const fn guest_code(error: &GuestError) -> &'static str {
    match error {
        GuestError::Refused { .. } => "guest_refused",
        GuestError::Closed(_) => "guest_closed",
        GuestError::Timeout { .. } => "guest_timeout",
        GuestError::Protocol(_) => "guest_protocol",
        GuestError::Source(_) => "source_failed",
        GuestError::Unreachable(_) => "guest_unreachable",
    }
}
