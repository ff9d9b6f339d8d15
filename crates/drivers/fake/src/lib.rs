//! Every port in memory: for tests, and for demonstrations without a hypervisor.
//!
//! ```text
//!   FakeHypervisor ──launch──▶ FakeMachine ──holds──▶ GuestSystem (files, processes)
//!         │ connector()                                    ▲
//!         └──────────▶ FakeConnector ──connect──▶ FakeGuest┘        FakeStorage · MemoryStore · FrozenClock
//! ```
//!
//! The fakes pass the same conformance suites as the real drivers. Clones of a [`FakeHypervisor`] share their machines,
//! so a "restarted server" is a new server over a clone. Every operation can be told to fail or to hang ([`Script`]),
//! and machines end on demand ([`FakeHypervisor::end`]).
//!
//! A branch writes the guest (processes, identity, epoch) into pages of its memory and its files to the overlay of its disk,
//! where storage finds them; a child reads both. A program in the middle of a command begins that command again there.
//!
//! What they do *not* do: run real programs, keep anything after the process ends, or use any resource worth naming.

mod clock;
mod guest;
mod holes;
mod hooks;
mod hypervisor;
mod script;
mod state;
mod storage;

pub use clock::FrozenClock;
pub use hooks::FakeHooks;
pub use hypervisor::{BalloonDriver, Character, FakeConnector, FakeGuest, FakeHypervisor, FakeMachine};
pub use script::{Fault, Operation, Script};
pub use state::MemoryStore;
pub use storage::FakeStorage;
