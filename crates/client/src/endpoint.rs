//! Ways to a server.

use std::process::Stdio;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::net::UnixStream;

use crate::error::ClientError;
use crate::socket;

/// Way to a server.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    /// A unix socket of this host.
    Socket(Utf8PathBuf),
    /// A program whose standard input and output are a connection; one process for each.
    Program(Vec<String>),
}

impl Endpoint {
    /// Path of the socket, or the name of the program.
    pub(crate) fn path(&self) -> &Utf8Path {
        match self {
            Self::Socket(path) => path,
            Self::Program(words) => Utf8Path::new(words.first().map_or("", String::as_str)),
        }
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<UnixStream, ClientError> {
        match self {
            Self::Socket(path) => socket::connect(path).await,
            Self::Program(words) => start(words).map_err(|source| ClientError::Program {
                program: words.first().cloned().unwrap_or_default(),
                source,
            }),
        }
    }
}

/// Starts a program with the other end of a pair of sockets as its standard input and output. It ends when this end is
/// closed; the runtime collects its exit.
fn start(words: &[String]) -> std::io::Result<UnixStream> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    };
    // A pair of sockets and not two pipes: one stream is what connections are everywhere else.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    // tokio demands it; the program's end keeps blocking, as programs expect of their standard input.
    ours.set_nonblocking(true)?;
    let input = std::os::fd::OwnedFd::from(theirs);
    let output = input.try_clone()?;
    tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .spawn()?;
    UnixStream::from_std(ours)
}
