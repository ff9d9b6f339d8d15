//! Contexts: interpreters that stay.

use microvm_types::VmRef;

use crate::context::{Context, ContextId, ContextList, CreateContext, ExecuteCode, ExecutionLine};
use crate::operation::{Created, Json, Lines, LongJson, Nothing};
use crate::queries::NoQuery;

crate::rows! {
    /// List contexts
    ///
    /// Interpreters that stay in the guest, with their variables. They live through pauses, snapshots and forks, and end when the VM
    /// stops.
    List = CONTEXT_LIST, Get "/vms/{vm}/contexts", Safe, Offered, (VmRef, NoQuery) Nothing => Json<ContextList>;

    /// Start a context
    Create = CONTEXT_CREATE, Post "/vms/{vm}/contexts", Never, Offered, (VmRef, NoQuery) Json<CreateContext> => Created<Context>;

    /// End a context
    Remove = CONTEXT_REMOVE, Delete "/vms/{vm}/contexts/{context}", Never, Offered, ((VmRef, ContextId), NoQuery) Nothing => Nothing;

    /// End a context and start it again
    ///
    /// It keeps its id and its directory, and nothing else.
    Restart = CONTEXT_RESTART, Post "/vms/{vm}/contexts/{context}/restart", Never, Offered, ((VmRef, ContextId), NoQuery) Nothing => Json<Context>;

    /// Interrupt what a context executes
    Interrupt = CONTEXT_INTERRUPT, Post "/vms/{vm}/contexts/{context}/interrupt", Safe, Offered, ((VmRef, ContextId), NoQuery) Nothing => Nothing;

    /// Execute code in a context
    ///
    /// Output, results and the error come line by line while it runs. Executions of one context run one after the other. A client that
    /// goes away interrupts the code.
    Execute = CONTEXT_EXECUTE, Post "/vms/{vm}/contexts/execute", Never, Offered, (VmRef, NoQuery) LongJson<ExecuteCode> => Lines<ExecutionLine>;
}
