//! Processes started through the agent.

use microvm_types::{ProcessId, VmRef};

use crate::exec::{ProcessList, SendSignal};
use crate::operation::{Json, Nothing};
use crate::queries::NoQuery;

crate::rows! {
    /// List processes started through the agent
    List = PROCESS_LIST, Get "/vms/{vm}/processes", Safe, Offered, (VmRef, NoQuery) Nothing => Json<ProcessList>;

    /// Send a signal to a process
    ///
    /// To a process that was started through the agent, and to its group.
    Signal = PROCESS_SIGNAL, Post "/vms/{vm}/processes/{process}/signal", Never, Offered, ((VmRef, ProcessId), NoQuery) Json<SendSignal> => Nothing;
}
