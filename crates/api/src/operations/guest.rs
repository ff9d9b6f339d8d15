//! Guests: what they tell of themselves, commands and ports.

use microvm_types::VmRef;

use crate::exec::{ClientMessage, Execute, Executed, ServerMessage};
use crate::guest::{GuestProcesses, GuestsHealth, HealthReply, Ping as Pong, ShutdownGuest, SystemInfoReply};
use crate::operation::{Handshake, Json, LongJson, Nothing, Port, Socket};
use crate::queries::NoQuery;
use crate::vm::Vm;

crate::rows! {
    /// Ping the agent
    ///
    /// An empty round trip on the channel.
    Ping = GUEST_PING, Get "/vms/{vm}/guest/ping", Safe, Offered, (VmRef, NoQuery) Nothing => Json<Pong>;

    /// Ping the agent
    ///
    /// The same as `guest.ping`, for clients that send POST.
    PingByPost = GUEST_PING_BY_POST, Post "/vms/{vm}/guest/ping", Safe, Withheld, (VmRef, NoQuery) Nothing => Json<Pong>;

    /// Show the guest as a system
    SystemInfo = GUEST_SYSTEM_INFO, Get "/vms/{vm}/guest/system-info", Safe, Offered, (VmRef, NoQuery) Nothing => Json<SystemInfoReply>;

    /// List all processes of the guest
    Processes = GUEST_PROCESSES, Get "/vms/{vm}/guest/processes", Safe, Offered, (VmRef, NoQuery) Nothing => Json<GuestProcesses>;

    /// Show the health of the guest
    Health = GUEST_HEALTH, Get "/vms/{vm}/guest/health", Safe, Offered, (VmRef, NoQuery) Nothing => Json<HealthReply>;

    /// Show the health of all VMs
    ///
    /// Every running guest is pinged and asked for its measurements; one that rests is not woken.
    HealthOfAll = GUEST_HEALTH_OF_ALL, Get "/guests/health", Safe, Offered, ((), NoQuery) Nothing => Json<GuestsHealth>;

    /// Shut a guest down, now or later
    ///
    /// Without a delay as `vm.stop`. A delayed one is answered at once with `shutdown_at` in the VM, and is carried out by the next
    /// server too. A newer one takes its place; `vm.start` gives it up, as does whatever else stops or deletes the VM, or hibernates
    /// it on request. One that hibernates for being idle is shut down when it is used again after that time. A VM that is off already
    /// stays so.
    Shutdown = GUEST_SHUTDOWN, Post "/vms/{vm}/guest/shutdown", Never, Offered, (VmRef, NoQuery) Json<ShutdownGuest> => Json<Vm>;

    /// Run a command and collect its output
    ///
    /// The answer comes when the command has ended. Of each output 10 MB are kept; `truncated` and `omitted` say what is
    /// left out.
    Run = GUEST_EXECUTE, Post "/vms/{vm}/guest/execute", Never, Offered, (VmRef, NoQuery) LongJson<Execute> => Json<Executed>;

    /// Run a command, or attach to one, and stream its output
    ///
    /// The first text frame is `start`, `attach` or `read`. Binary frames are one byte for the stream (0 standard input,
    /// 1 standard output, 2 standard error) and data.
    Exec = GUEST_EXEC, Get "/vms/{vm}/exec", Never, Withheld, (VmRef, NoQuery) Handshake => Socket<ClientMessage, ServerMessage>;

    /// Connect to a TCP port of the guest
    ///
    /// Binary frames are the bytes, an empty one is the end of its direction, a close frame the end of both.
    Connect = GUEST_CONNECT, Get "/vms/{vm}/ports/{port}", Never, Withheld, ((VmRef, Port), NoQuery) Handshake => Socket<(), ()>;
}
