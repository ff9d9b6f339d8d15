//! From a pipe or terminal into the output buffer.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::output::MOST_READ;
use super::process::Process;
use crate::agent::Agent;

/// Bytes read at once from a process that writes little: most do.
const LITTLE: usize = 4 * 1024;
/// Bytes read at once from one that writes much.
const MUCH: usize = MOST_READ;
/// Capacity asked for the pipe of one that writes much: fewer changes between reader and writer on one emulated
/// processor.
const PIPE_SIZE: usize = 256 * 1024;

/// Reads one output of a process until it is closed everywhere. Once the process has ended and what it wrote was read,
/// anything more (of children that live on) is thrown away, so that they do not fail for want of a reader.
pub(super) async fn pump(agent: &Agent, process: &Process, index: usize, source: &AsyncFd<OwnedFd>) {
    let mut changed = process.changed.subscribe();
    let mut buffer = vec![0; LITTLE];
    loop {
        // Seen from here on: whatever changes after this line wakes the waits below.
        changed.borrow_and_update();
        let (ended, finished, room) = {
            let state = process.lock();
            let output = &state.outputs[index];
            let free = process.detached && !state.has_reader;
            (state.exit.is_some(), output.finished, free || output.finished || output.has_room())
        };
        if !room {
            // Someone must take output, or a reader must come or go.
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        // Whether there is something to read is asked for once: when a process has ended nothing tells that all it
        // wrote was read, except to try.
        let ready = if ended && !finished {
            None
        } else {
            tokio::select! {
                ready = source.readable() => match ready {
                    Ok(ready) => Some(ready),
                    Err(_) => break,
                },
                // The end of the process is a reason to look again, whatever the descriptor says.
                _ = changed.changed(), if !ended => continue,
            }
        };
        match rustix::io::read(source.get_ref(), &mut buffer) {
            Ok(0) | Err(Errno::IO) => break,
            Ok(count) => {
                if !finished {
                    process.lock().outputs[index].push(&buffer[..count]);
                    process.notify();
                }
                if count == buffer.len() && count < MUCH {
                    buffer.resize(MUCH, 0);
                    // Refused beyond a user's share, and by a terminal; what it has does as well.
                    let _ = rustix::pipe::fcntl_setpipe_size(source.get_ref(), PIPE_SIZE);
                }
                // A process that writes without end must not keep the others waiting.
                tokio::task::yield_now().await;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match ready {
                Some(mut ready) => ready.clear_ready(),
                None => {
                    process.lock().outputs[index].finished = true;
                    process.notify();
                }
            },
            Err(_) => break,
        }
    }
    process.lock().outputs[index].finished = true;
    // Most processes end with their output: then their end needs no signal to be found.
    agent.reaper.collect();
    process.notify();
}
