//! Processes started through the agent.

use microvm_types::{ProcessId, VmRef};

use crate::exec::{ProcessList, SendSignal};
use crate::operation::{Json, Nothing};
use crate::queries::NoQuery;

crate::rows! {
    /// List processes started through the agent
    List = "process.list", Get "/vms/{vm}/processes", GuestRead, Safe, Offered, (VmRef, NoQuery) Nothing => Json<ProcessList>;

    /// Send a signal to a process
    ///
    /// To a process that was started through the agent, and to its group.
    Signal = "process.signal", Post "/vms/{vm}/processes/{process}/signal", GuestExecute, Never, Offered, ((VmRef, ProcessId), NoQuery) Json<SendSignal> => Nothing;
}
