//! The host itself: its clock, its random numbers, and hooks that run on it.
//!
//! What this driver does *not* do: touch VMs. Hooks get what they need to know as JSON and run with the server's rights.

mod clock;
mod hooks;

pub use clock::SystemClock;
pub use hooks::HostHooks;
