//! Events.

use microvm_types::VmRef;

use crate::operation::{Handshake, Socket};
use crate::queries::FollowEvents;
use crate::vm::EventMessage;

crate::rows! {
    /// Follow what happens to VMs
    ///
    /// One text frame for each change; a reader that is too slow is told how many it missed.
    Follow = EVENT_FOLLOW, Get "/events", Safe, Withheld, ((), FollowEvents) Handshake => Socket<(), EventMessage>;

    /// Follow what happens to VMs
    ///
    /// The same as `event.follow`, for clients that know this path.
    OfSystem = EVENT_OF_SYSTEM, Get "/system/events", Safe, Withheld, ((), FollowEvents) Handshake => Socket<(), EventMessage>;

    /// Follow what happens to one VM
    ///
    /// As `event.follow` with the parameter `vm`.
    OfVm = EVENT_OF_VM, Get "/vms/{vm}/events", Safe, Withheld, (VmRef, FollowEvents) Handshake => Socket<(), EventMessage>;
}
