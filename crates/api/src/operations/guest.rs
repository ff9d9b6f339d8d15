//! Guests: what they tell of themselves, commands and ports.

use microvm_types::VmRef;

use crate::exec::{ClientMessage, Execute, Executed, ServerMessage};
use crate::guest::{
    GuestProcesses, GuestsHealth, HealthReply, Ping as Pong, ShutdownGuest, StartCommands as Started,
    SystemInfoReply,
};
use crate::operation::{CommandJson, Handshake, Json, Nothing, Port, Socket};
use crate::queries::{NoQuery, OpenShell};
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

    /// Show the start commands of a VM, and why one failed
    ///
    /// A VM that rests is not woken for it (`guest_not_at_hand`), and it counts as no use.
    StartCommands = GUEST_START_COMMANDS, Get "/vms/{vm}/guest/start-commands", Safe, Offered, (VmRef, NoQuery) Nothing => Json<Started>;

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
    /// left out. A command has at most 1 MiB, one of its arguments 131,071 bytes; what is longer than a program's arguments may be reaches
    /// the shell on its standard input.
    Run = GUEST_EXECUTE, Post "/vms/{vm}/guest/execute", Never, Offered, (VmRef, NoQuery) CommandJson<Execute> => Json<Executed>;

    /// Run a command, or attach to one, and stream its output
    ///
    /// The first text frame is `start`, `attach` or `read`. Binary frames are one byte for the stream (0 standard input,
    /// 1 standard output, 2 standard error) and data.
    Exec = GUEST_EXEC, Get "/vms/{vm}/exec", Never, Withheld, (VmRef, NoQuery) Handshake => Socket<ClientMessage, ServerMessage>;

    /// Open a shell on a terminal
    ///
    /// The login shell of a user of the guest. It begins at once: the first frame comes from the server, `started` or `error`, and all
    /// frames are those of `guest.exec` after its first one. A shell whose connection ends is hung up (SIGHUP), as by a terminal that is
    /// closed.
    Shell = GUEST_SHELL, Get "/vms/{vm}/shell", Never, Withheld, (VmRef, OpenShell) Handshake => Socket<ClientMessage, ServerMessage>;

    /// Connect to a TCP port of the guest
    ///
    /// Binary frames are the bytes, an empty one is the end of its direction, a close frame the end of both.
    Connect = GUEST_CONNECT, Get "/vms/{vm}/ports/{port}", Never, Withheld, ((VmRef, Port), NoQuery) Handshake => Socket<(), ()>;
}
