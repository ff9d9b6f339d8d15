//! VMs and their life.

use microvm_types::VmRef;

use crate::operation::{Archive, Bytes, Created, Data, Json, LongJson, Nothing, Whole};
use crate::queries::{ConsolePart, DeleteVm, ListVms, NoQuery, StartVm, WaitForVm};
use crate::snapshot::{ForkVm, Forked};
use crate::vm::{
    Counters, CreateVm, Event, KillVm, Killed, RenameVm, ResizeVm, RestartVm, Stats as Numbers, StopVm,
    UpdateVm, Vm, VmChanges, VmList,
};

crate::rows! {
    /// List VMs
    ///
    /// In order of creation. `unreadable` names those that are stored and cannot be read.
    List = VM_LIST, Get "/vms", Safe, Offered, ((), ListVms) Nothing => Json<VmList>;

    /// Create a VM
    ///
    /// It is started unless `start` is false; then the answer comes when its agent answers. With `pool` it is taken out of
    /// that pool.
    Create = VM_CREATE, Post "/vms", Never, Offered, ((), NoQuery) LongJson<CreateVm> => Created<Vm>;

    /// Show a VM
    Get = VM_GET, Get "/vms/{vm}", Safe, Offered, (VmRef, NoQuery) Nothing => Json<Vm>;

    /// Delete a VM
    ///
    /// Whatever it is doing. Its snapshots stay.
    Delete = VM_DELETE, Delete "/vms/{vm}", Never, Offered, (VmRef, DeleteVm) Nothing => Nothing;

    /// Start a VM
    ///
    /// The answer comes when its agent answers.
    Start = VM_START, Post "/vms/{vm}/start", Never, Offered, (VmRef, StartVm) Nothing => Json<Vm>;

    /// Stop a VM
    Stop = VM_STOP, Post "/vms/{vm}/stop", Never, Offered, (VmRef, NoQuery) Json<StopVm> => Json<Vm>;

    /// Pause a VM
    ///
    /// Its processors stop, its memory stays.
    Pause = VM_PAUSE, Post "/vms/{vm}/pause", Never, Offered, (VmRef, NoQuery) Nothing => Json<Vm>;

    /// Resume a VM
    Resume = VM_RESUME, Post "/vms/{vm}/resume", Never, Offered, (VmRef, NoQuery) Nothing => Json<Vm>;

    /// Hibernate a VM
    ///
    /// Its memory goes to disk and its VMM ends; the next request wakes it.
    Hibernate = VM_HIBERNATE, Post "/vms/{vm}/hibernate", Never, Offered, (VmRef, NoQuery) Nothing => Json<Vm>;

    /// Change the memory of a running VM
    ///
    /// A hibernated VM is woken for it.
    Resize = VM_RESIZE, Post "/vms/{vm}/resize", Never, Offered, (VmRef, NoQuery) Json<ResizeVm> => Json<Vm>;

    /// Restart a VM
    ///
    /// Stops it as `vm.stop` does and starts it. A stopped or failed VM is started; a hibernated one is woken first, so that
    /// its programs end in order.
    Restart = VM_RESTART, Post "/vms/{vm}/restart", Never, Offered, (VmRef, NoQuery) Json<RestartVm> => Json<Vm>;

    /// Send a signal to a VM
    ///
    /// SIGKILL ends the machine at once; its disk stays. Any other signal goes to every command that was started through
    /// the agent and still runs.
    Kill = VM_KILL, Post "/vms/{vm}/kill", Never, Offered, (VmRef, NoQuery) Json<KillVm> => Json<Killed>;

    /// Rename a VM
    ///
    /// The guest has its new host name after its next start.
    Rename = VM_RENAME, Post "/vms/{vm}/rename", Never, Offered, (VmRef, NoQuery) Json<RenameVm> => Json<Vm>;

    /// Change limits, labels and metadata of a VM
    ///
    /// In every state; what the request does not name stays.
    Update = VM_UPDATE, Post "/vms/{vm}/update", Never, Offered, (VmRef, NoQuery) Json<UpdateVm> => Json<Vm>;

    /// Wait for a state of a VM
    ///
    /// The answer comes when the VM is in one of the states, or deleted if `gone` is set; it is the event that said so. A VM
    /// that fails or is deleted while another state is waited for is an error, as is the end of the time (`wait_timeout`).
    Wait = VM_WAIT, Get "/vms/{vm}/wait", Safe, Offered, (VmRef, WaitForVm) Nothing => Json<Event>;

    /// Read the resource use of a running VM
    ///
    /// Counters of the host and numbers of the guest in one answer. Reading them does not count as use of the VM.
    Stats = VM_STATS, Get "/vms/{vm}/stats", Safe, Offered, (VmRef, NoQuery) Nothing => Json<Numbers>;

    /// Fork a running VM
    ///
    /// The children are made all or none; the parent goes on. A hibernated parent is woken for it.
    Fork = VM_FORK, Post "/vms/{vm}/fork", Never, Offered, (VmRef, NoQuery) LongJson<ForkVm> => Created<Forked>;

    /// Export the root of a running VM
    ///
    /// A tar stream of all files of its image and its disk, of one moment: programs in the VM that write to the disk wait until
    /// the changes are read. The trailer `x-left-out` says what is not in it (`LeftOut` in JSON).
    Export = VM_EXPORT, Get "/vms/{vm}/export", Safe, Withheld, (VmRef, NoQuery) Nothing => Data<Archive>;

    /// List the differences between a running VM's root and its image
    ///
    /// In order of paths, all of one moment: programs in the VM that write to the disk wait until the changes are read. What the list
    /// cannot tell of is in `left_out`.
    Changes = VM_CHANGES, Get "/vms/{vm}/changes", Safe, Withheld, (VmRef, NoQuery) Nothing => Json<VmChanges>;

    /// Read the counters of a running VM
    Metrics = VM_METRICS, Get "/vms/{vm}/metrics", Safe, Offered, (VmRef, NoQuery) Nothing => Json<Counters>;

    /// Read the console of a VM
    ///
    /// The header `x-offset` says where the answer begins, `x-end` where the console ends now.
    Console = VM_CONSOLE, Get "/vms/{vm}/console", Safe, Withheld, (VmRef, ConsolePart) Nothing => Whole<Bytes>;
}
