//! The one error type of the services: what went wrong and why. Its class, its code and its remedies are in `class`.

mod bound;
mod class;

use microvm_ports::guest::GuestError;
use microvm_ports::{BranchError, HookError, LaunchError, MachineError, StateError, StorageError};
use microvm_types::lifecycle::Denied;
use microvm_types::template::NetworkMode;
use microvm_types::{ErrorKind, OperationName, Permission, Phase};

pub use self::bound::Bound;
pub(crate) use self::bound::unit;

/// Refusal or failure of a service. Messages say what happened and why, their cause included: a field is a `source` only where
/// the message does not hold it.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The caller lacks a permission.
    #[error("{caller} may not do this: the permission {} is needed", .missing.as_str())]
    Forbidden {
        /// Name of the caller.
        caller: String,
        /// Value of the request.
        operation: OperationName,
        /// The permission.
        missing: Permission,
    },
    /// No VM of that id or name.
    #[error("no VM is called `{0}`")]
    UnknownVm(String),
    /// Several VMs have ids that begin so.
    #[error("the ids of several VMs begin with `{prefix}`: {candidates}; write more of the id, or a name")]
    AmbiguousVm {
        /// Value of the request.
        prefix: String,
        /// Names and ids of some of them.
        candidates: String,
    },
    /// A signal for a VM in which nothing runs.
    #[error("no command runs in the VM `{0}`, so nothing got the signal; SIGKILL ends the machine")]
    NoCommand(microvm_types::Name),
    /// It failed while something else was waited for.
    #[error("the VM `{vm}` failed while it was waited for: {reason}")]
    FailedMeanwhile {
        /// Its name.
        vm: microvm_types::Name,
        /// Reason of the failure.
        reason: String,
    },
    /// No template of that name.
    #[error("no template is called `{name}`: there are {known}")]
    UnknownTemplate {
        /// Value of the request.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A template cannot be used, kept or removed.
    #[error(transparent)]
    Template(#[from] crate::template_source::TemplateError),
    /// A field of the request cannot be.
    #[error("{field}: {reason}")]
    Invalid {
        /// Name of the field.
        field: &'static str,
        /// The fault, and what would be right.
        reason: String,
    },
    /// More than this host or its operator allows.
    #[error("{field}: {asked}{unit} is more than {}", .bound.told(.field, .limit), unit = unit(.field))]
    OverLimit {
        /// Name of the field.
        field: &'static str,
        /// Value of the request.
        asked: u64,
        /// Largest allowed value.
        limit: u64,
        /// What bounds it.
        bound: Bound,
    },
    /// As many VMs as are allowed exist.
    #[error("{limit} VMs exist and no more are allowed: delete some")]
    TooManyVms {
        /// Largest allowed number.
        limit: usize,
    },
    /// All VMs together would take more than the operator allows.
    #[error(
        "{what}: {asked}{unit} were asked for, and {free}{unit} of {limit}{unit} for all VMs together are left: delete some VMs, or ask for less", unit = unit(.what)
    )]
    NoneLeft {
        /// Of what.
        what: &'static str,
        /// Value of the request.
        asked: u64,
        /// Amount that is left.
        free: u64,
        /// Limit for all VMs together.
        limit: u64,
    },
    /// A network mode that this version cannot serve.
    #[error("network mode `{}` is not available yet: only `isolated` (no network) is, ask for that", format!("{:?}", .0).to_lowercase())]
    Network(NetworkMode),
    /// The lifecycle does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The VM must run for that.
    #[error("the VM is {0}, it must be running for that{hint}", hint = hint(*.0))]
    NotRunning(Phase),
    /// The VM waits for space.
    #[error(
        "the VM is paused because the host's disk, or the disk limit of all VMs together, is full: free some space, and it resumes by itself"
    )]
    NoRoom,
    /// The machine of the VM runs, and its agent does not answer.
    #[error(
        "the agent of the VM `{vm}` has not answered for {seconds} s ({reason}): its machine is kept running and the server keeps trying to reach the agent; the VM's console shows the kernel's messages"
    )]
    Unreachable {
        /// Its name.
        vm: microvm_types::Name,
        /// For how long.
        seconds: i64,
        /// Observation, in words.
        reason: String,
    },
    /// A VM did not come up.
    #[error("the VM did not come up: {reason}{}", console_suffix(.console))]
    Boot {
        /// Class of the failure.
        kind: ErrorKind,
        /// Reason of the failure.
        reason: String,
        /// The end of its console, cleaned; may be empty.
        console: String,
    },
    /// The operation was overtaken by a stop or a delete.
    #[error("the VM was {0} meanwhile")]
    Overtaken(&'static str),
    /// All turns of exports are taken.
    #[error(
        "{most} exports and comparisons are being made on this server, which is as many as it makes at once, and none of them ended in time: try again in a moment"
    )]
    ExportsBusy {
        /// Number of the turns.
        most: usize,
    },
    /// A hook stopped the operation.
    #[error("the hook {point} refused: {cause}")]
    Hook {
        /// Point of the hook.
        point: String,
        /// Why.
        cause: HookError,
    },
    /// A command of an image recipe failed.
    #[error(
        "the recipe's command `{command}` ended with exit code {code}; the end of what it printed:\n{output}"
    )]
    BuildCommand {
        /// The command, shortened.
        command: String,
        /// Its exit code as a shell shows it.
        code: u8,
        /// The end of its output.
        output: String,
    },
    /// This machine has no balloon.
    #[error("the memory of this VM cannot be changed while it runs: its hypervisor offers no balloon")]
    NoBalloon,
    /// A guest without a driver for the balloon that its memory needs.
    #[error(
        "the kernel `{kernel}` has no driver for a balloon (virtio_balloon): the guest would keep all of `memory_max_mib`; leave that out, or choose another kernel"
    )]
    NoBalloonDriver {
        /// Name of the kernel.
        kernel: String,
    },
    /// No machine gets processors while it runs.
    #[error(
        "the processors of this VM cannot be changed to {0}: hypervisors here have no hotplug of processors; create a VM with as many"
    )]
    NoProcessorHotplug(u32),
    /// This hypervisor cannot branch machines.
    #[error(
        "this VM cannot be branched: its hypervisor offers neither snapshots nor forks, or an older server started it (then it helps to stop and start it)"
    )]
    NoBranching,
    /// A disk of the user's that cannot be branched.
    #[error(
        "this VM cannot be branched: its extra disk `{0}` is a writable qcow2 file, and only raw ones can be branched; convert it to raw, or attach it read-only"
    )]
    WritableDisk(microvm_types::Name),
    /// A shared folder cannot belong to two machines, and what is open in it cannot be saved.
    #[error(
        "this VM cannot be branched or put to disk: it has the shared folder `{target}`, whose open files no snapshot can hold; make it without shared folders and copy files"
    )]
    SharedFolder {
        /// Its path in the guest.
        target: String,
    },
    /// No driver of this name.
    #[error("there is no hypervisor driver `{name}` on this server, only {known}")]
    UnknownHypervisor {
        /// The name.
        name: String,
        /// Names of those that are there.
        known: String,
    },
    /// This hypervisor shares no folders.
    #[error("folders of the host cannot be shared: this hypervisor offers no way to; copy files instead")]
    NoSharing,
    /// This kernel cannot mount shared folders.
    #[error(
        "the kernel `{name}` ({release}) has no 9P file system, which shared folders need: the kernel `built` has it, and is the default once it is there"
    )]
    KernelWithoutShares {
        /// Name of the kernel.
        name: String,
        /// Its release.
        release: String,
    },
    /// A VM that sleeps cannot go on where it was.
    #[error(
        "the VM `{vm}` cannot be woken: {cause}; a cold start boots it from its disk instead, without what was in its memory"
    )]
    CannotWake {
        /// Its name.
        vm: microvm_types::Name,
        /// Reason.
        cause: Box<ServiceError>,
    },
    /// A VM is not deleted because a disk file of the user's cannot take what the VM wrote to it.
    #[error(
        "the VM `{vm}` is not deleted: {cause}; bring the file back, or give up what the VM wrote to its disks"
    )]
    KeptByDisk {
        /// Its name.
        vm: microvm_types::Name,
        /// Path of the file, and the reason.
        cause: StorageError,
    },
    /// No volume of that name or id.
    #[error("there is no volume `{0}`")]
    UnknownVolume(String),
    /// A volume of that name exists.
    #[error("the volume name `{0}` is taken: choose another one, or remove it")]
    VolumeNameTaken(microvm_types::Name),
    /// Another VM uses a volume in a way that leaves no room for this VM.
    #[error(
        "the volume `{volume}` is in use by the VM `{vm}`, which {}: one VM at a time may write to a volume, and several may read it if none writes; stop `{vm}` first",
        if *writes { "may write to it" } else { "reads it" }
    )]
    VolumeInUse {
        /// Name of the volume.
        volume: microvm_types::Name,
        /// The VM that has it.
        vm: microvm_types::Name,
        /// True if that VM may write to it.
        writes: bool,
    },
    /// A volume name that cannot be resolved: several volumes have it, or one that has it may be unreadable.
    #[error("the volume name `{volume}` is not clear: {what}")]
    VolumeUnclear {
        /// The name.
        volume: microvm_types::Name,
        /// Reason, in words, with ids.
        what: String,
    },
    /// The users of a volume are not all known.
    #[error(
        "the volume `{volume}` may belong to another VM: {what}; repair that VM from a copy, or delete it, before the volume is written or removed"
    )]
    VolumeUsersUnknown {
        /// Name of the volume.
        volume: microvm_types::Name,
        /// The unknown user, in words.
        what: String,
    },
    /// VMs or pools have a volume that is to be removed.
    #[error("the volume `{volume}` belongs to {vms}: delete these first")]
    VolumeHasVms {
        /// Name of the volume.
        volume: microvm_types::Name,
        /// Their names, for people.
        vms: String,
    },
    /// A golden snapshot was made, and no VM came up from it. It was removed.
    #[error(
        "no VM of the template `{template}` came up from its golden snapshot, which was removed: {cause}; a VM that boots (`cold`) does not need one"
    )]
    UnprovenGolden {
        /// Name of the template.
        template: String,
        /// Reason.
        cause: Box<ServiceError>,
    },
    /// A snapshot was written, and no VM came up from it. It is kept: the reason may be one of the moment.
    #[error(
        "the snapshot `{name}` is written, but no VM came up from it: {cause}; restore it later to try again, or remove it and take another one"
    )]
    UnprovenSnapshot {
        /// Its name.
        name: microvm_types::Name,
        /// Reason.
        cause: Box<ServiceError>,
    },
    /// A branch failed; the VM does what it did before.
    #[error(transparent)]
    Branch(BranchError),
    /// A snapshot of that name exists.
    #[error("the snapshot name `{0}` is taken: choose another one, or remove it")]
    SnapshotNameTaken(microvm_types::Name),
    /// A VM goes back to its own snapshots only.
    #[error("`{snapshot}` was taken of {}, not of `{vm}`: make a new VM of it instead", taken_of(of, vm))]
    OtherVmsSnapshot {
        /// Name of the snapshot.
        snapshot: microvm_types::Name,
        /// The VM it was taken of.
        of: microvm_types::Name,
        /// The VM that was to go back to it.
        vm: microvm_types::Name,
    },
    /// There is nothing to go back to.
    #[error("`{template}` has no golden snapshot older than the current one")]
    NoOlderGolden {
        /// Name of the template.
        template: String,
    },
    /// No pool of that name.
    #[error("no pool is called `{0}`")]
    UnknownPool(String),
    /// A pool of that name exists.
    #[error("the pool name `{0}` is taken: choose another one, or remove it")]
    PoolNameTaken(microvm_types::Name),
    /// The record of a pool of that name cannot be read; VMs of it may wait.
    #[error(
        "a pool `{pool}` is stored and cannot be read ({reason}): put its record back from a copy of the database, or choose another name"
    )]
    UnreadablePool {
        /// Its name.
        pool: microvm_types::Name,
        /// Fault of the record, in words.
        reason: String,
    },
    /// The users of images are not all known.
    #[error(
        "no unnamed image is removed: {what}, and which images are needed by that is not known; repair it from a copy, or delete it"
    )]
    UsersUnknown {
        /// The unknown users, in words.
        what: String,
    },
    /// A pool has handed out as many VMs as it may.
    #[error("all {max} VMs of the pool `{pool}` are handed out: delete some, or let it have more")]
    PoolExhausted {
        /// Name of the pool.
        pool: microvm_types::Name,
        /// Largest number of its VMs.
        max: usize,
    },
    /// The host has no room for so many forks.
    #[error(
        "{asked} forks were asked for, and the host has room for {room} now: ask for fewer, or stop some VMs"
    )]
    NoRoomForForks {
        /// Number of the request.
        asked: usize,
        /// Number that fits.
        room: usize,
    },
    /// Not all forks of a request came up; those that did were removed again.
    #[error("fork {number} of {count} failed, and all of them were undone: {cause}")]
    Fork {
        /// Number of the child, from 1.
        number: usize,
        /// Number of the request.
        count: usize,
        /// Why.
        cause: Box<ServiceError>,
    },
    /// The server is ending.
    #[error("the server is shutting down: try again in a moment")]
    ShuttingDown,
    /// Images, kernels, files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Records.
    #[error(transparent)]
    State(#[from] StateError),
    /// Starting machines.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Living machines.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl From<BranchError> for ServiceError {
    fn from(error: BranchError) -> Self {
        match error {
            BranchError::Machine(error) => Self::Machine(error),
            BranchError::Storage(error) => Self::Storage(error),
            other => Self::Branch(other),
        }
    }
}

/// Advice for phases that no request ends.
const fn hint(phase: Phase) -> &'static str {
    match phase {
        Phase::Paused | Phase::Stopped | Phase::Hibernated | Phase::Failed | Phase::Running => "",
        Phase::Pooled => ": it waits in a pool, acquire one from there",
        Phase::Deleting | Phase::Deleted => ": it is being deleted",
        _ => ": wait a moment and try again",
    }
}

fn console_suffix(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("\nthe end of its console:\n{console}") }
}

/// The VM that a snapshot was taken of, where another one was named. Names are used again when their VM is deleted.
fn taken_of(of: &microvm_types::Name, vm: &microvm_types::Name) -> String {
    if of == vm { "an earlier VM of that name".to_owned() } else { format!("the VM `{of}`") }
}
