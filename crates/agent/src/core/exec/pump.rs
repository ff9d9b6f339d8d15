//! From an output of a process into its buffer.

use std::io::ErrorKind;

use crate::core::agent::Agent;
use crate::core::platform::{Output as _, Platform};
use crate::core::process::{MOST_READ, Process};

/// Bytes read at once from a process that writes little: most do.
const LITTLE: usize = 4 * 1024;
/// Bytes read at once from one that writes much.
const MUCH: usize = MOST_READ;

/// Reads one output of a process until it is closed everywhere. After the process has ended and its output was read,
/// further bytes (of children that live on) are thrown away, so that those do not fail for want of a reader.
pub(super) async fn pump<P: Platform>(
    agent: &Agent<P>,
    process: &Process<P>,
    index: usize,
    source: &P::Output,
) {
    let mut changed = process.changed.subscribe();
    let mut buffer = vec![0; LITTLE];
    loop {
        // Any change after this line wakes the waits below.
        changed.borrow_and_update();
        let (ended, finished, room) = {
            let state = process.lock();
            let output = &state.outputs[index];
            // A detached process that nobody reads never blocks: its oldest output is dropped instead.
            let free = process.detached && !state.has_reader;
            (state.exit.is_some(), output.finished, free || output.finished || output.has_room())
        };
        if !room {
            // Room comes when a reader takes output, or when readers come or go.
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        // Once the process has ended, only a read that finds nothing shows that all its output was read.
        let read = if ended && !finished {
            source.read_now(&mut buffer)
        } else {
            tokio::select! {
                read = source.read(&mut buffer) => read,
                // The end of the process is a reason to look again, with or without new bytes.
                _ = changed.changed(), if !ended => continue,
            }
        };
        match read {
            Ok(0) => break,
            Ok(count) => {
                if !finished {
                    process.lock().outputs[index].push(&buffer[..count]);
                    process.notify();
                }
                if count == buffer.len() && count < MUCH {
                    // A full buffer shows a process that writes much.
                    buffer.resize(MUCH, 0);
                    source.expect_much();
                }
                // A process that writes without end must not keep the others waiting.
                tokio::task::yield_now().await;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && ended => {
                process.lock().outputs[index].finished = true;
                process.notify();
            }
            Err(_) => break,
        }
    }
    process.lock().outputs[index].finished = true;
    // Most processes end together with their output: look now instead of waiting for the system's notice.
    agent.platform.look_for_ends();
    process.notify();
}
