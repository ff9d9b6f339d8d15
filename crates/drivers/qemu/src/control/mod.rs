//! The control connection to a VMM: QMP over a unix socket.

pub(crate) mod qmp;
pub(crate) mod socket;
