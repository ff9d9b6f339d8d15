//! Files, directories and archives of the guest. Everything that may wait for a disk runs on a helper thread.

mod ahead;
mod content;
mod direct;
mod hash;
mod limited;
mod list;
mod manage;
mod owner;
mod pack;
mod pack_root;
mod path;
mod patience;
mod read;
mod receiver;
mod stat;
mod unpack;
mod watch;
mod write;

pub(crate) use hash::hash;
pub(crate) use list::list;
pub(crate) use manage::{make_directory, remove, rename};
pub(crate) use owner::Owner;
pub(crate) use pack::pack;
pub(crate) use pack_root::{pack_root, xattrs};
pub(crate) use read::read;
pub(crate) use stat::stat;
pub(crate) use unpack::unpack;
pub(crate) use watch::watch;
pub(crate) use write::write;

use crate::failure::{AgentError, AgentResult};

/// Runs work that may wait for a disk beside the runtime's thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> AgentResult<T> + Send + 'static,
) -> AgentResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::internal(format!("the work was broken off: {error}")))?
}
