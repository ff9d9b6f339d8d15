//! One file per verb.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod golden;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod kernel;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod machine;
pub(crate) mod man;
pub(crate) mod pool;
pub(crate) mod ps;
pub(crate) mod resize;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod template;
pub(crate) mod verify;
