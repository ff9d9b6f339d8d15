//! Fake machines: launching, branching and loading them, and reaching their guests.

mod balloon;
mod branch;
mod character;
mod connector;
mod guest;
mod guest_exec;
mod guest_files;
mod host;
mod machine;
mod memory;
mod sparse;

pub use balloon::BalloonDriver;
pub use character::Character;
pub use connector::FakeConnector;
pub use guest::FakeGuest;
pub use host::FakeHypervisor;
pub use machine::FakeMachine;
