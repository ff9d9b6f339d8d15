//! Operating systems below the core, one module each: `core::port` and `core::platform` say what a module implements.

pub(crate) mod linux;
