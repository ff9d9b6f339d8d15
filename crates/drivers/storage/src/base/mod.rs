//! What everything else here stands on: typed failures, durable small files, work in progress, tools.

pub(crate) mod cancel;
pub(crate) mod device;
pub(crate) mod error;
pub(crate) mod files;
pub(crate) mod manifest;
pub(crate) mod room;
pub(crate) mod stamp;
pub(crate) mod tool;
pub(crate) mod workspace;
