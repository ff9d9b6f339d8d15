//! What the host itself gives: its clock, its randomness, and a way to run hooks on it.
//!
//! What this driver does *not* do: touch VMs. Hooks get what they need to know as JSON and run with the server's rights.

mod clock;
mod hooks;

pub use clock::SystemClock;
pub use hooks::HostHooks;
