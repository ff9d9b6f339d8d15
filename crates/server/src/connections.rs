//! Connections: how many, and how long a caller may take to say what it wants.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use microvm_types::ErrorKind;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::caller::{Peer, PeerProcess};
use crate::failure::Failure;
use crate::limits::Limits;
use crate::share::{Budget, Share};

/// Most bytes of a request's head, and of a body that hyper holds at once.
const BUFFER_MAX: usize = 128 << 10;

/// Connections beyond the limit that are told so; more are closed without a word.
const REFUSALS_MAX: usize = 64;

/// Time for the head of a request that is only going to be refused.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// Pause after the system could not give a connection: it announces no end of such a lack.
const LACK: Duration = Duration::from_millis(100);

/// Accepts and serves until `ending`; then requests under way are answered before it returns.
pub(crate) async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    ending: CancellationToken,
) -> io::Result<()> {
    // A quarter: requests open files, channels to guests and processes of their own.
    let budget = Budget::of(u64::from(limits.connections).min(descriptors() / 4));
    let (mut serving, mut refusing) = (JoinSet::new(), JoinSet::new());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // The caller gave up while it waited in the queue: the next one is none the worse for it.
                Err(error) if is_of_connection(&error) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(LACK).await;
                    continue;
                }
            },
            // Tasks that ended are taken out, or the sets would grow as long as the server runs.
            Some(_) = serving.join_next() => continue,
            Some(_) = refusing.join_next() => continue,
            () = ending.cancelled() => break,
        };
        let peer = peer(&stream);
        match budget.take(peer, 1) {
            Some(share) => {
                let stream = Held { stream, _share: share };
                serving.spawn(answer(stream, peer, router.clone(), limits.head, ending.clone()));
            }
            None if refusing.len() < REFUSALS_MAX => {
                tracing::warn!(?peer, "a connection was refused: there are too many");
                refusing.spawn(refuse(stream));
            }
            None => {}
        }
    }
    // Closed before the last requests are waited for: whoever connects now is told at once that nobody listens.
    drop(listener);
    refusing.abort_all();
    while serving.join_next().await.is_some() {}
    Ok(())
}

/// Serves one connection; after `ending` no further request on it.
async fn answer(stream: Held, peer: Peer, router: Router, head: Duration, ending: CancellationToken) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(Body::new))
    });
    let mut connection =
        pin!(builder(head, true).serve_connection(TokioIo::new(stream), service).with_upgrades());
    // A caller that breaks off, or is too slow, hurts itself only: its error is nobody else's.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn builder(head: Duration, keep_alive: bool) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // hyper refuses a limit of the head without a timer.
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(BUFFER_MAX)
        .keep_alive(keep_alive);
    builder
}

/// Answers the first request with the reason.
async fn refuse(stream: UnixStream) {
    let refusal = service_fn(async |_| {
        let failure = Failure::new(
            ErrorKind::Unavailable,
            "server_busy",
            "this process has as many connections to the server as it may: close some, or try again later",
        );
        let mut response: Response = failure.into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        Ok::<_, Infallible>(response)
    });
    let builder = builder(REFUSAL_TIME, false);
    // Whoever does not even take a refusal gets none.
    let _ =
        tokio::time::timeout(2 * REFUSAL_TIME, builder.serve_connection(TokioIo::new(stream), refusal)).await;
}

fn peer(stream: &UnixStream) -> Peer {
    let credentials = stream.peer_cred().ok();
    Peer(credentials.map(|known| PeerProcess { uid: known.uid(), pid: known.pid() }))
}

/// True if the error concerns only the connection that was about to be accepted.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A connection and its place among all; an upgraded one (WebSocket) keeps its place.
struct Held {
    stream: UnixStream,
    _share: Share,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
