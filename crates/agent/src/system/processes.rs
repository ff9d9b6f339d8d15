//! All processes of the guest, from `/proc`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use microvm_protocol::messages::{GuestProcess, GuestProcesses, Reply};
use microvm_protocol::mux::StreamHandle;

use crate::failure::{AgentError, AgentResult};

/// A process as `/proc` shows it.
pub(crate) struct Listed {
    pub(crate) session: u32,
    pub(crate) message: GuestProcess,
}

/// Most characters of a command line that are told.
const MOST_COMMAND: usize = 1024;

/// Everything that runs now. A process that ends meanwhile is left out.
pub(crate) fn all() -> Vec<Listed> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn read(pid: u32) -> Option<Listed> {
    let directory = format!("/proc/{pid}");
    let uid = fs::metadata(&directory).ok()?.uid();
    let stat = fs::read(format!("{directory}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name stands in brackets and may hold anything; everything else comes after the last bracket.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let arguments = fs::read(format!("{directory}/cmdline")).unwrap_or_default();
    let command = if arguments.is_empty() {
        format!("[{name}]")
    } else {
        let text = String::from_utf8_lossy(arguments.strip_suffix(b"\0").unwrap_or(&arguments));
        text.chars().take(MOST_COMMAND).map(|letter| if letter == '\0' { ' ' } else { letter }).collect()
    };
    let page = rustix::param::page_size() as u64;
    // Clock ticks are 10 ms on every Linux of our architectures.
    let ticks = number(11)? + number(12)?;
    Some(Listed {
        session: u32::try_from(number(3)?).ok()?,
        message: GuestProcess {
            pid,
            parent: u32::try_from(number(1)?).ok()?,
            uid,
            state: u32::from(fields.first()?.chars().next()?),
            resident_bytes: number(21)? * page,
            cpu_ms: ticks * 10,
            command,
        },
    })
}

/// Answers with all of them, some at a time.
pub(crate) async fn list(stream: &StreamHandle) -> AgentResult<()> {
    let listed = tokio::task::spawn_blocking(all)
        .await
        .map_err(|error| AgentError::internal(format!("the list was broken off: {error}")))?;
    let mut messages: Vec<_> = listed.into_iter().map(|listed| listed.message).collect();
    messages.sort_unstable_by_key(|process| process.pid);
    for some in messages.chunks(8) {
        stream.send_message(Reply::GuestProcesses(GuestProcesses { processes: some.to_vec() })).await?;
    }
    Ok(())
}
