//! Entries of directories.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;

use microvm_protocol::messages::{List, MAX_LIST_ENTRIES, Reply, Stat, Stats};
use microvm_protocol::mux::StreamHandle;
use prost::Message as _;
use tokio::runtime::Handle;

use super::path::{absolute, failed};
use super::stat::describe;
use crate::failure::AgentResult;

/// Bytes of entries per message, far below what a frame takes.
const MESSAGE_BYTES: usize = 32 * 1024;

/// Sends the entries below a directory, level by level, sorted within each directory.
pub(crate) async fn list(stream: &Arc<StreamHandle>, request: List) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    super::blocking(move || walk(&stream, &runtime, &request)).await
}

fn walk(stream: &StreamHandle, runtime: &Handle, request: &List) -> AgentResult<()> {
    let root = absolute(&request.path)?;
    let mut waiting = VecDeque::from([(root.to_path_buf(), 1u32)]);
    let (mut some, mut bytes, mut count) = (Vec::<Stat>::new(), 0, 0);
    while let Some((directory, level)) = waiting.pop_front() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Only the directory asked for must be there; others may vanish meanwhile.
            Err(error) if level == 1 => return Err(failed("list", &directory)(error)),
            Err(_) => continue,
        };
        let mut paths: Vec<_> = entries.flatten().take(MAX_LIST_ENTRIES).map(|entry| entry.path()).collect();
        paths.sort_unstable();
        for path in paths {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let entry = describe(&path, &metadata);
            if metadata.is_dir() && level < request.depth {
                waiting.push_back((path, level + 1));
            }
            bytes += entry.encoded_len();
            some.push(entry);
            count += 1;
            if bytes >= MESSAGE_BYTES || count == MAX_LIST_ENTRIES {
                bytes = 0;
                let entries = std::mem::take(&mut some);
                runtime.block_on(stream.send_message(Reply::Stats(Stats { entries })))?;
            }
            if count == MAX_LIST_ENTRIES {
                return Ok(());
            }
        }
    }
    if !some.is_empty() {
        runtime.block_on(stream.send_message(Reply::Stats(Stats { entries: some })))?;
    }
    Ok(())
}
