//! Events.

use crate::operation::{Handshake, Socket};
use crate::queries::FollowEvents;
use crate::vm::EventMessage;

crate::rows! {
    /// Follow what happens to VMs
    ///
    /// One text frame for each change; a reader that is too slow is told how many it missed.
    Follow = EVENT_FOLLOW, Get "/events", Safe, Withheld, ((), FollowEvents) Handshake => Socket<(), EventMessage>;
}
