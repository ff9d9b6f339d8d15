//! Guests: what they tell of themselves, commands and ports.

use microvm_types::VmRef;

use crate::exec::{ClientMessage, Execute, Executed, ServerMessage};
use crate::guest::{GuestProcesses, GuestsHealth, HealthReply, Ping as Pong, SystemInfoReply};
use crate::operation::{Handshake, Json, LongJson, Nothing, Port, Socket};
use crate::queries::NoQuery;

crate::rows! {
    /// Ping the agent
    ///
    /// An empty round trip on the channel.
    Ping = "guest.ping", Get "/vms/{vm}/guest/ping", GuestRead, Safe, Offered, (VmRef, NoQuery) Nothing => Json<Pong>;

    /// Ping the agent
    ///
    /// The same as `guest.ping`, for clients that send POST.
    PingByPost = "guest.ping_by_post", Post "/vms/{vm}/guest/ping", GuestRead, Safe, Withheld, (VmRef, NoQuery) Nothing => Json<Pong>;

    /// Show the guest as a system
    SystemInfo = "guest.system_info", Get "/vms/{vm}/guest/system-info", GuestRead, Safe, Offered, (VmRef, NoQuery) Nothing => Json<SystemInfoReply>;

    /// List all processes of the guest
    Processes = "guest.processes", Get "/vms/{vm}/guest/processes", GuestRead, Safe, Offered, (VmRef, NoQuery) Nothing => Json<GuestProcesses>;

    /// Show the health of the guest
    Health = "guest.health", Get "/vms/{vm}/guest/health", GuestRead, Safe, Offered, (VmRef, NoQuery) Nothing => Json<HealthReply>;

    /// Show the health of all VMs
    ///
    /// Every running guest is pinged and asked for its measurements; one that rests is not woken.
    HealthOfAll = "guest.health_of_all", Get "/guests/health", VmRead, Safe, Offered, ((), NoQuery) Nothing => Json<GuestsHealth>;

    /// Run a command and collect its output
    ///
    /// The answer comes when the command has ended. Of each output 10 MB are kept; `truncated` and `omitted` say what is
    /// left out.
    Run = "guest.execute", Post "/vms/{vm}/guest/execute", GuestExecute, Never, Offered, (VmRef, NoQuery) LongJson<Execute> => Json<Executed>;

    /// Run a command, or attach to one, and stream its output
    ///
    /// The first text frame is `start`, `attach` or `read`. Binary frames are one byte for the stream (0 standard input,
    /// 1 standard output, 2 standard error) and data.
    Exec = "guest.exec", Get "/vms/{vm}/exec", GuestExecute, Never, Withheld, (VmRef, NoQuery) Handshake => Socket<ClientMessage, ServerMessage>;

    /// Connect to a TCP port of the guest
    ///
    /// Binary frames are the bytes, an empty one is the end of its direction, a close frame the end of both.
    Connect = "guest.connect", Get "/vms/{vm}/ports/{port}", GuestExecute, Never, Withheld, ((VmRef, Port), NoQuery) Handshake => Socket<(), ()>;
}
