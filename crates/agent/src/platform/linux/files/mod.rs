//! Files, directories and archives of the guest. Work that may wait for a disk runs on helper threads.

mod ahead;
mod content;
mod direct;
mod hash;
mod list;
mod manage;
mod owner;
mod pack;
mod pack_layer;
mod pack_root;
mod path;
mod patience;
mod read;
mod stat;
mod unpack;
mod watch;
mod write;

pub(super) use hash::hash;
pub(super) use list::list;
pub(super) use manage::{make_directory, remove, rename};
pub(super) use owner::Owner;
pub(super) use pack::attributes::xattrs;
pub(super) use pack::pack;
pub(super) use pack_layer::pack_layer;
pub(super) use pack_root::pack_root;
pub(super) use read::read;
pub(super) use stat::stat;
pub(super) use unpack::unpack;
pub(super) use watch::watch;
pub(super) use write::write;
