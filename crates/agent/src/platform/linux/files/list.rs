//! Entries of directories.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;

use microvm_protocol::messages::{List, MAX_LIST_ENTRIES, Reply, Stats};
use microvm_protocol::mux::StreamHandle;
use prost::Message as _;
use tokio::runtime::Handle;

use super::path::{absolute, failed};
use super::stat::describe;
use crate::core::blocking::blocking;
use crate::core::failure::AgentResult;

/// Bytes of entries per message, far below what a frame takes.
const MESSAGE_BYTES: usize = 32 * 1024;

/// Sends the entries below a directory, level by level, sorted within each directory.
pub(in crate::platform::linux) async fn list(stream: &Arc<StreamHandle>, request: List) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    blocking(move || walk(&stream, &runtime, &request)).await
}

fn walk(stream: &StreamHandle, runtime: &Handle, request: &List) -> AgentResult<()> {
    let root = absolute(&request.path)?;
    let mut waiting = VecDeque::from([(root.to_path_buf(), 1u32)]);
    let (mut bytes, mut count) = (0, 0);
    let mut stats = Stats::default();
    'all: while let Some((directory, level)) = waiting.pop_front() {
        let paths = fs::read_dir(&directory).and_then(|entries| {
            // One more than fits, so that it is known that there are more.
            entries
                .take(MAX_LIST_ENTRIES + 1)
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        });
        let mut paths = match paths {
            Ok(paths) => paths,
            // Only the directory asked for must be there; others may vanish meanwhile.
            Err(error) if level == 1 => return Err(failed("list", &directory)(error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(_) => {
                stats.unreadable += 1;
                stats.first_unreadable.get_or_insert_with(|| directory.into_os_string().into_vec());
                continue;
            }
        };
        paths.sort_unstable();
        for path in paths {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if count == MAX_LIST_ENTRIES {
                stats.truncated = true;
                break 'all;
            }
            let entry = describe(&path, &metadata);
            if metadata.is_dir() && level < request.depth {
                waiting.push_back((path, level + 1));
            }
            // The last message has entries, so that it can carry what is left out.
            if bytes >= MESSAGE_BYTES {
                bytes = 0;
                let entries = std::mem::take(&mut stats.entries);
                runtime.block_on(stream.send_message(Reply::Stats(Stats { entries, ..Stats::default() })))?;
            }
            bytes += entry.encoded_len();
            stats.entries.push(entry);
            count += 1;
        }
    }
    if !stats.entries.is_empty() {
        runtime.block_on(stream.send_message(Reply::Stats(stats)))?;
    }
    Ok(())
}
