//! One living machine: its record, its state as events tell it, and VMMs that wait to become one.

mod qemu_machine;
pub(crate) mod record;
pub(crate) mod standby;
mod watcher;

pub(crate) use qemu_machine::QemuMachine;
