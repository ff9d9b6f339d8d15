//! User ids of VMMs.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Lowest user id given to a VMM: above all that distributions and `subuid` hand out by default.
const FIRST_USER: u32 = 0x6000_0000;

/// Hands out user ids, each to one machine of this server. They are taken at random from 2^28, so that VMMs of
/// different servers do not meet either.
#[derive(Debug, Default)]
pub(crate) struct Users(Mutex<HashSet<u32>>);

impl Users {
    /// A user id of its own for one machine; `None` if this server is not root and has none to give.
    pub(crate) fn take(&self) -> Result<Option<u32>, getrandom::Error> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes)?;
            // 28 of the 32 bits.
            let user = FIRST_USER + (u32::from_le_bytes(bytes) >> 4);
            if taken.insert(user) {
                return Ok(Some(user));
            }
        }
    }

    /// Notes the user id of a machine that an earlier server started.
    pub(crate) fn keep(&self, user: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(user);
    }

    /// True if a machine of this server has this user id.
    #[cfg(test)]
    pub(crate) fn has(&self, user: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&user)
    }
}

/// A user id in use; free again when this is dropped with its machine's handle.
#[derive(Debug)]
pub(crate) struct UserLease {
    pub(crate) users: Arc<Users>,
    pub(crate) user: Option<u32>,
}

impl Drop for UserLease {
    fn drop(&mut self) {
        if let Some(user) = self.user {
            self.users.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&user);
        }
    }
}
