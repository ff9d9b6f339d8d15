//! From a pipe or terminal into the output buffer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::process::Process;

const READ_SIZE: usize = 64 * 1024;

/// Reads one output of a process until it is closed everywhere. Once the process has ended and what it wrote was read,
/// anything more (of children that live on) is thrown away, so that they do not fail for want of a reader.
pub(crate) async fn pump(process: Arc<Process>, index: usize, source: AsyncFd<OwnedFd>) {
    let mut changed = process.changed.subscribe();
    let mut buffer = vec![0u8; READ_SIZE];
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
        match rustix::io::read(source.get_ref(), &mut buffer) {
            Ok(0) | Err(Errno::IO) => break,
            Ok(count) => {
                if !finished {
                    process.lock().outputs[index].push(&buffer[..count]);
                    process.notify();
                }
                // A process that writes without end must not keep the others waiting.
                tokio::task::yield_now().await;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if ended && !finished => {
                process.lock().outputs[index].finished = true;
                process.notify();
            }
            Err(Errno::AGAIN) => {
                tokio::select! {
                    ready = source.readable() => match ready {
                        Ok(mut guard) => guard.clear_ready(),
                        Err(_) => break,
                    },
                    // The end of the process is a reason to look again, whatever the descriptor says.
                    _ = changed.changed(), if !ended => {}
                }
            }
            Err(_) => break,
        }
    }
    process.lock().outputs[index].finished = true;
    process.notify();
}
