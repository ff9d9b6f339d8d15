//! Ports of this host's loopback that lead to ports of a guest.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use microvm_types::VmRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::client::Client;
use crate::error::ClientError;

/// Connections of one port at once; further ones wait in the queue of the listening socket. Each takes two descriptors here
/// and more in the server, whose own limit is 2,048 connections.
const MOST_CONNECTIONS: usize = 512;
/// Rest after a connection could not be accepted for want of something.
const REST: Duration = Duration::from_millis(100);

/// A port of this host's loopback, listened on.
#[derive(Debug)]
pub struct Forward {
    listener: TcpListener,
    local: SocketAddr,
    guest: u16,
}

impl Forward {
    /// Listens on a port of 127.0.0.1; 0 takes a free one.
    ///
    /// # Errors
    /// The error of the system, for example that the port is in use.
    pub async fn listen(local: u16, guest: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await?;
        let local = listener.local_addr()?;
        Ok(Self { listener, local, guest })
    }

    /// Address that is listened on.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Port of the guest.
    #[must_use]
    pub const fn guest(&self) -> u16 {
        self.guest
    }

    /// Connects whoever comes to the guest's port, until the future is dropped; `failed` hears of connections that could
    /// not be made or broke. A broken connection is reset at this end, so that nobody takes part of an answer for all of it.
    ///
    /// # Errors
    /// The error of the system if it accepts no connections any more.
    pub async fn serve(
        &self,
        client: &Client,
        vm: &VmRef,
        failed: impl Fn(u16, &ClientError),
    ) -> std::io::Result<std::convert::Infallible> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                    Ok((local, _)) => {
                        // In a set: when the future is dropped, its connections end with it.
                        connections.spawn(connect(client.clone(), vm.clone(), self.guest, local));
                    }
                    Err(error) if passes(&error) => tokio::time::sleep(REST).await,
                    Err(error) => return Err(error),
                },
                Some(ended) = connections.join_next() => {
                    // A panic is reported where it happened.
                    if let Ok(Err(error)) = ended {
                        failed(self.guest, &error);
                    }
                }
            }
        }
    }
}

/// True for failures of accept(2) that are about one connection, or about descriptors and memory that others will give back.
fn passes(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::PROTO,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

async fn connect(client: Client, vm: VmRef, port: u16, mut local: TcpStream) -> Result<(), ClientError> {
    // Small requests must not wait for one another; without it they are only slower.
    let _ = local.set_nodelay(true);
    let joined = match client.connect_port(&vm, port).await {
        Ok(stream) => {
            let (reader, writer) = local.split();
            stream.join(reader, writer).await
        }
        Err(error) => Err(error),
    };
    match joined {
        Ok(()) => Ok(()),
        Err(error) => {
            // A connection without linger is closed by a reset.
            let _ = local.set_zero_linger();
            // That the local end went away is its own business.
            if matches!(error, ClientError::Source(_) | ClientError::Output(_)) { Ok(()) } else { Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_passes_and_a_socket_that_is_none_does_not() {
        let failure = |errno: rustix::io::Errno| std::io::Error::from(errno);
        for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::CONNABORTED, rustix::io::Errno::NOBUFS] {
            assert!(passes(&failure(errno)), "{errno}");
        }
        assert!(!passes(&failure(rustix::io::Errno::BADF)) && !passes(&std::io::Error::other("x")));
    }
}
