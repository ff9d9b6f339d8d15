//! Callers and their permissions.
//!
//! A caller over the unix socket is known by the credentials the kernel reports (`SO_PEERCRED`). Callers over TCP will
//! be known by tokens: another [`Authenticator`], the same [`Permission`]s.

use axum::extract::ConnectInfo;
use microvm_api::Problem;
pub use microvm_types::caller::{Caller, Permission};
use microvm_types::{ErrorKind, OperationName};

/// Process credentials of a connection, as the kernel reports them; `None` if it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(pub Option<PeerProcess>);

/// The process at the other end of a unix socket when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerProcess {
    /// Its user.
    pub uid: u32,
    /// Its process number.
    pub pid: Option<i32>,
}

/// Finds out who calls. Anything it does not know is refused.
pub trait Authenticator: Send + Sync {
    /// The caller of a request, from its connection and its head.
    ///
    /// # Errors
    /// A problem of kind `Unauthenticated` or `Forbidden`.
    fn caller(&self, peer: Peer, head: &axum::http::request::Parts) -> Result<Caller, Box<Problem>>;
}

/// Lets in processes of the server's own user and of root, and nobody else.
#[derive(Debug)]
pub struct PeerAuthenticator {
    uid: u32,
}

impl PeerAuthenticator {
    /// For the user of this process.
    #[must_use]
    pub fn new() -> Self {
        Self { uid: rustix::process::geteuid().as_raw() }
    }
}

impl Default for PeerAuthenticator {
    fn default() -> Self {
        Self::new()
    }
}

impl Authenticator for PeerAuthenticator {
    fn caller(&self, peer: Peer, _head: &axum::http::request::Parts) -> Result<Caller, Box<Problem>> {
        match peer.0 {
            Some(process) if process.uid == 0 || process.uid == self.uid => {
                Ok(Caller::local(format!("uid:{}", process.uid)))
            }
            Some(process) => Err(Box::new(Problem::new(
                ErrorKind::Forbidden,
                "caller_forbidden",
                format!(
                    "this server belongs to uid {}, and uid {} called: use a server of your own",
                    self.uid, process.uid
                ),
            ))),
            None => Err(Box::new(Problem::new(
                ErrorKind::Unauthenticated,
                "caller_unknown",
                "the kernel does not tell who called: connect through the server's unix socket",
            ))),
        }
    }
}

/// The caller of a request who may ask for `operation`.
pub(crate) fn authorised(
    authenticator: &dyn Authenticator,
    operation: OperationName,
    head: &axum::http::request::Parts,
) -> Result<Caller, Box<Problem>> {
    let peer = head.extensions.get::<ConnectInfo<Peer>>().map_or(Peer(None), |info| info.0);
    let caller = authenticator.caller(peer, head)?;
    let Some(missing) = operation.missing(&caller) else { return Ok(caller) };
    Err(Box::new(Problem::new(
        ErrorKind::Forbidden,
        "permission_missing",
        format!("{} may not do this: the permission {} is needed", caller.name, missing.as_str()),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_are_let_in() {
        let authenticator = PeerAuthenticator { uid: 1000 };
        let (head, ()) = axum::http::Request::new(()).into_parts();
        let call = |uid| authenticator.caller(Peer(Some(PeerProcess { uid, pid: None })), &head);
        assert!(call(0).is_ok());
        assert!(call(1000).is_ok());
        assert_eq!(call(1001).unwrap_err().kind, ErrorKind::Forbidden);
        assert_eq!(authenticator.caller(Peer(None), &head).unwrap_err().kind, ErrorKind::Unauthenticated);
    }
}
