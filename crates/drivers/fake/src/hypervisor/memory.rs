//! A guest's state in pages of memory, where storage treats it as any machine's.
//!
//! The state begins in the second page of the memory; the device state tells how long it is and its checksum, so that a
//! machine that is given the wrong memory notices.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::{IncomingState, MemoryPages, PAGE_SIZE, PageRange, StateMemory};
use microvm_ports::state_parts::StateParts;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::storage::digest;

/// Number of the first page with the state.
const FIRST: u64 = 1;

/// Facts that are not in memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceState {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    length: u64,
    sha256: String,
}

fn pages(length: u64) -> u64 {
    length.div_ceil(PAGE_SIZE as u64)
}

/// Puts a state into memory; `None` if it does not fit.
pub(crate) fn put(state: &[u8], vcpus: u32, memory_mib: u32) -> Option<(Bytes, MemoryPages)> {
    let length = state.len() as u64;
    let count = pages(length);
    if (FIRST + count) * PAGE_SIZE as u64 > u64::from(memory_mib) << 20 {
        return None;
    }
    let mut data = state.to_vec();
    data.resize(usize::try_from(count).ok()?.checked_mul(PAGE_SIZE)?, 0);
    let header = DeviceState { vcpus, memory_mib, length, sha256: digest(state) };
    let ranges = vec![PageRange { first: FIRST, count }];
    Some((serde_json::to_vec(&header).ok()?.into(), MemoryPages { ranges, data: data.into() }))
}

fn header(device_state: &[u8]) -> Result<DeviceState, String> {
    serde_json::from_slice(device_state)
        .map_err(|error| format!("its device state is not one of a fake machine: {error}"))
}

/// Name of the part that the characters which save one whole file have besides their device state.
const CONFIGURATION: &str = "configuration";

/// A state of two parts, as VMMs have it that keep a machine's configuration apart.
pub(crate) fn with_configuration(device_state: Bytes, vcpus: u32, memory_mib: u32) -> StateParts {
    let configuration = configuration(vcpus, memory_mib).to_string();
    let parts = [(StateParts::DEVICE_STATE, device_state), (CONFIGURATION, configuration.into())];
    let named = parts.into_iter().filter_map(|(name, content)| Some((name.parse().ok()?, content)));
    named.collect()
}

fn configuration(vcpus: u32, memory_mib: u32) -> Value {
    json!({ "vcpus": vcpus, "memory_mib": memory_mib })
}

/// The device state of these parts, if there are no others than belong to this form of memory, and the configuration is
/// that of the device state.
fn device_state<'a>(parts: &'a StateParts, memory: &StateMemory) -> Result<&'a Bytes, String> {
    if !matches!(memory, StateMemory::File(_)) {
        return parts.as_single().ok_or_else(|| "it has other parts than a device state".to_owned());
    }
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    let (Some(found), Some(state)) = (parts.get(CONFIGURATION), parts.get(StateParts::DEVICE_STATE)) else {
        return Err(format!("it has the parts {names:?}"));
    };
    let DeviceState { vcpus, memory_mib, .. } = header(state)?;
    let same =
        serde_json::from_slice::<Value>(found).is_ok_and(|found| found == configuration(vcpus, memory_mib));
    if same && names.len() == 2 {
        Ok(state)
    } else {
        Err("its configuration is not that of its devices".to_owned())
    }
}

/// A device state that holds the memory as well: the usual one as a line, and what is in memory.
pub(crate) fn inside(device_state: &[u8], state: &[u8]) -> Bytes {
    [device_state, b"\n", state].concat().into()
}

fn take_inside(both: &[u8]) -> Result<(DeviceState, Vec<u8>), String> {
    let end = both.iter().position(|byte| *byte == b'\n').ok_or("its memory is missing")?;
    let (header, state) = (header(&both[..end])?, &both[end + 1..]);
    if digest(state) != header.sha256 {
        return Err("its memory is not the one it was saved with".to_owned());
    }
    Ok((header, state.to_vec()))
}

/// Writes a whole memory to a file in `directory`.
pub(crate) fn write(
    directory: &Utf8Path,
    pages: &MemoryPages,
    memory_mib: u32,
) -> std::io::Result<Utf8PathBuf> {
    let path = directory.join("saved.memory");
    let file = File::create(&path)?;
    file.set_len(u64::from(memory_mib) << 20)?;
    for (range, content) in pages.iter() {
        file.write_all_at(content, range.first * PAGE_SIZE as u64)?;
    }
    Ok(path)
}

/// Reads a state from the memory of a machine that is to go on from it.
///
/// # Errors
/// The fault, in a sentence.
pub(crate) fn take(incoming: &IncomingState) -> Result<(DeviceState, Vec<u8>), String> {
    let none = MemoryPages::default();
    let device_state = device_state(&incoming.parts, &incoming.memory)?;
    let (base, changed) = match &incoming.memory {
        StateMemory::Pages { base, pages } => (base, pages),
        StateMemory::File(file) => (file, &none),
        StateMemory::Sparse { .. } => return Err("it was saved over another".to_owned()),
        StateMemory::Inside => return take_inside(device_state),
    };
    let header = header(device_state)?;
    let memory = u64::from(header.memory_mib) << 20;
    let room = memory.saturating_sub(FIRST * PAGE_SIZE as u64);
    let length = Some(header.length).filter(|length| *length <= room);
    let length =
        length.and_then(|length| usize::try_from(length).ok()).ok_or("it is larger than its memory")?;
    let failed = |error: std::io::Error| format!("its memory base {base} cannot be read: {error}");
    let file = File::open(base).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() != memory {
        return Err(format!("its memory base {base} has not the size of its memory"));
    }
    let count = pages(header.length);
    let mut state = vec![0; usize::try_from(count).unwrap_or_default() * PAGE_SIZE];
    file.read_exact_at(&mut state, FIRST * PAGE_SIZE as u64).map_err(failed)?;
    for (range, content) in changed.iter() {
        for (number, page) in (range.first..range.end()).zip(content.chunks(PAGE_SIZE)) {
            let at = number.checked_sub(FIRST).filter(|at| *at < count);
            if let Some(at) = at.and_then(|at| usize::try_from(at).ok()) {
                state[at * PAGE_SIZE..][..page.len()].copy_from_slice(page);
            }
        }
    }
    state.truncate(length);
    if digest(&state) != header.sha256 {
        return Err("its memory is not the one it was saved with".to_owned());
    }
    Ok((header, state))
}

#[cfg(test)]
mod tests {
    use microvm_ports::branch::Compatibility;

    use super::*;

    #[test]
    fn a_state_is_read_from_base_and_pages_and_a_wrong_memory_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let base = Utf8Path::from_path(directory.path()).unwrap().join("base");
        let file = File::create(&base).unwrap();
        file.set_len(1 << 20).unwrap();
        let state: Vec<u8> = (0..10_000u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
        let (device_state, pages) = put(&state, 1, 1).unwrap();
        let mut incoming = IncomingState {
            parts: StateParts::single(device_state),
            memory: StateMemory::Pages { base: base.clone(), pages: pages.clone() },
            compatibility: Compatibility::new(),
        };
        assert_eq!(take(&incoming).unwrap().1, state);
        incoming.memory = StateMemory::Pages { base: base.clone(), pages: MemoryPages::default() };
        assert!(take(&incoming).unwrap_err().contains("not the one"));
        file.write_all_at(&pages.data, FIRST * PAGE_SIZE as u64).unwrap();
        assert_eq!(take(&incoming).unwrap().1, state);
        incoming.parts = StateParts::single(vec![7; 4096].into());
        assert!(take(&incoming).is_err());
        assert!(put(&vec![1; 1 << 20], 1, 1).is_none(), "it does not fit beside the first page");
    }
}
