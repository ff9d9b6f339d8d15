//! Owners that an agent can give files to.

use std::sync::atomic::{AtomicBool, Ordering};

use microvm_ports::GuestError;
use microvm_ports::guest::Identity;
use microvm_protocol::messages::features;
use microvm_types::ErrorKind;
use microvm_types::files::FileOwner;

/// Support for owners in one guest.
pub(crate) struct Owners {
    /// The agent looks owners up. One that is older makes everything root's.
    supported: bool,
    /// Commands that name no user run as root.
    default_is_root: AtomicBool,
}

fn is_root(user: &str) -> bool {
    matches!(user, "" | "0" | "root" | "0:0" | "root:root")
}

impl Owners {
    pub(crate) fn new(features: u64, identity: &Identity) -> Self {
        Self {
            supported: features & features::OWNERS != 0,
            default_is_root: AtomicBool::new(is_root(&identity.user)),
        }
    }

    /// The guest has another identity.
    pub(crate) fn identified(&self, identity: &Identity) {
        self.default_is_root.store(is_root(&identity.user), Ordering::Relaxed);
    }

    /// The owner as a request names it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the agent is too old for any but root.
    pub(crate) fn named(&self, owner: Option<&FileOwner>) -> Result<Option<String>, GuestError> {
        let Some(owner) = owner else { return Ok(None) };
        if self.supported {
            return Ok(Some(owner.text().to_owned()));
        }
        let is_root = match owner {
            FileOwner::Default => self.default_is_root.load(Ordering::Relaxed),
            FileOwner::Named(name) => is_root(name),
        };
        if is_root {
            return Ok(None);
        }
        Err(GuestError::Refused {
            kind: ErrorKind::Unsupported,
            message: "the agent of this VM is older than owners of copied files and makes all of them root's: stop and start \
                      the VM, or name `root` as their owner"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_agent_is_asked_for_root_only() {
        let of = |user: &str| Identity { user: user.to_owned(), ..Identity::default() };
        let named = |name: &str| Some(FileOwner::from_text(name));
        let new = Owners::new(features::OWNERS, &of("app"));
        assert_eq!(new.named(named("app:www").as_ref()).unwrap().as_deref(), Some("app:www"));
        assert_eq!(new.named(named("").as_ref()).unwrap().as_deref(), Some(""));
        let old = Owners::new(0, &of("app"));
        assert_eq!(old.named(None).unwrap(), None);
        assert_eq!(old.named(named("root").as_ref()).unwrap(), None);
        for owner in ["", "app", "1000"] {
            let error = old.named(named(owner).as_ref()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{owner}");
        }
        old.identified(&of(""));
        assert_eq!(old.named(named("").as_ref()).unwrap(), None);
    }
}
