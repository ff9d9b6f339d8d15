//! HTTP/1.1 connections over the unix socket, kept for the next request.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::transfer::Body;

/// Idle connections kept at most.
const IDLE_MAX: usize = 4;

/// Time for which a connection is kept for the next request: less than the 30 s after which a server closes idle ones, so that
/// no request is sent on a connection that is just being closed.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Connections to one server.
#[derive(Debug)]
pub(crate) struct Connections {
    endpoint: Endpoint,
    idle: Mutex<Vec<(Instant, SendRequest<Body>)>>,
    /// Drives the connections; ends them all when dropped.
    drivers: Mutex<JoinSet<()>>,
}

impl Connections {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, idle: Mutex::default(), drivers: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        self.endpoint.path()
    }

    /// A connection of its own, for a stream.
    pub(crate) async fn stream(&self) -> Result<UnixStream, ClientError> {
        self.endpoint.connect().await
    }

    /// A connection that was kept, if one is still good.
    fn take_idle(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The newest first: the older ones age and are dropped on the way.
        while let Some((since, sender)) = idle.pop() {
            // Not ready: its answer is still being read, or the server has closed it.
            if sender.is_ready() && since.elapsed() < IDLE_TIME {
                return Some(sender);
            }
        }
        None
    }

    async fn open(&self) -> Result<SendRequest<Body>, ClientError> {
        let stream = self.stream().await?;
        let action = "connect";
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::lost(action))?;
        {
            let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
            // Tasks of closed connections are taken out here, so that the set does not grow.
            while drivers.try_join_next().is_some() {}
            drivers.spawn(async move {
                // A broken connection shows in the request that uses it.
                let _ = connection.await;
            });
        }
        sender.ready().await.map_err(ClientError::lost(action))?;
        Ok(sender)
    }

    /// Sends a request and waits for the head of its answer. The connection is kept for the next request once the
    /// answer has been read.
    ///
    /// `again` is the request once more, if it may be served twice: it is sent if a kept connection breaks before the head
    /// of the answer, as one does that a server closed before it was restarted. There is no third attempt, and a
    /// new connection has one only.
    pub(crate) async fn send(
        &self,
        request: hyper::Request<Body>,
        again: Option<hyper::Request<Body>>,
        action: &'static str,
    ) -> Result<Response<Incoming>, ClientError> {
        let kept = self.take_idle();
        // On a new connection a failure says that the server is gone: a second attempt would only hide it.
        let again = again.filter(|_| kept.is_some());
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.open().await?,
        };
        let response = match (sender.send_request(request).await, again) {
            (Ok(response), _) => response,
            (Err(_), Some(again)) => {
                sender = self.open().await?;
                sender.send_request(again).await.map_err(ClientError::lost(action))?
            }
            (Err(error), None) => return Err(ClientError::lost(action)(error)),
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Put back before the answer is read: the sender is not ready until then, so nobody gets it too early.
        if idle.len() < IDLE_MAX {
            idle.push((Instant::now(), sender));
        }
        Ok(response)
    }
}
