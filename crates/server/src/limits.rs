//! Limits of what all callers together take of the server.

use std::time::Duration;

/// Limits of the HTTP edge. The default is what `microvm serve` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time for the head of a request, from the moment the connection is ready for it: also how long a connection may
    /// stand idle.
    pub head: Duration,
    /// Time for a whole JSON body.
    pub body: Duration,
    /// Longest silence of a caller in the middle of a file or an archive, while the guest waits for it.
    pub silence: Duration,
    /// Time that a guest may be late in ending a command whose time is up.
    pub lateness: Duration,
    /// Open connections, WebSockets included; never more than a quarter of the open files this process may have. One
    /// process may have as many as are left free for others.
    pub connections: u32,
    /// Bytes held for requests and answers: JSON bodies with what they become when they are read, collected output,
    /// lists, the windows of streams. One process may hold as much as is left free for others. An eighth of the host's
    /// memory, 512 MiB at least.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            body: Duration::from_secs(30),
            silence: Duration::from_mins(10),
            lateness: Duration::from_secs(60),
            connections: 2048,
            bytes: eighth_of_memory().max(512 << 20),
        }
    }
}

fn eighth_of_memory() -> u64 {
    let system = rustix::system::sysinfo();
    system.totalram.saturating_mul(system.mem_unit.into()) / 8
}

/// Bytes that a stream out of a guest may make the server keep while its reader does not read: its window, and what is on
/// the way to the socket.
pub(crate) const OUTGOING: usize = (512 + 128) << 10;

/// Bytes of an image that wait for their reader: parts of 256 KiB, and what is on the way to the socket.
pub(crate) const EXPORT: usize = (6 * 256 + 128) << 10;

/// Bytes that wait on the way into a command or a port: its window.
pub(crate) const INPUT: usize = 512 << 10;

/// Bytes that wait on the way into a file: the widest window.
pub(crate) const UPLOAD: usize = 2 << 20;
