//! Filters of system calls.

mod bpf;
pub(crate) mod call_filter;
pub(crate) mod folder_filter;
pub(crate) mod open_filter;
