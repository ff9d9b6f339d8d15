//! Who gets what is written.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::agent::Agent;
use crate::exec::users;
use crate::failure::AgentResult;

/// The owner that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The default user, whom nobody named: what is there already keeps its owner.
    pub(super) is_default: bool,
}

impl Owner {
    /// Resolves `user[:group]`; empty: the default user of commands.
    ///
    /// # Errors
    /// If the guest has no such user or group.
    pub(crate) fn resolve(agent: &Agent, specification: &str) -> AgentResult<Self> {
        let is_default = specification.is_empty();
        let user =
            if is_default { users::resolve(&agent.defaults().user) } else { users::resolve(specification) }?;
        Ok(Self { uid: user.uid, gid: user.gid, is_default })
    }

    /// Gives away something that was just made, without following a link.
    pub(super) fn give(self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
    }
}

/// Makes a directory and its parents; what is made gets the owner.
pub(super) fn make_all(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_all(parent, owner)?;
    }
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => owner.map_or(Ok(()), |owner| owner.give(path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}
