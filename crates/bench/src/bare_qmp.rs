//! QMP of a bare machine: what the loading of a state and the pause of a branch cost at least.

use std::io::{BufRead as _, BufReader, IoSlice, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use microvm_ports::branch::DiskChange;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::error::{BenchError, failed};

/// Time that a bare machine has for one command.
const DEADLINE: Duration = Duration::from_secs(10);
/// Name of the file that its device state is written to.
const STATE: &str = "state.bare";
/// Name of its control socket.
pub(crate) const SOCKET: &str = "qmp.sock";

/// A connection to the control socket of one machine.
struct Qmp(BufReader<UnixStream>);

fn wrong(error: &dyn std::fmt::Display) -> BenchError {
    failed("talking to a bare QEMU", error)
}

impl Qmp {
    fn connect(directory: &Utf8Path) -> Result<Self, BenchError> {
        let opened = UnixStream::connect(directory.join(SOCKET)).and_then(|stream| {
            stream.set_read_timeout(Some(DEADLINE))?;
            Ok(stream)
        });
        let mut qmp = Self(BufReader::new(opened.map_err(|error| wrong(&error))?));
        qmp.read()?;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The next line.
    fn read(&mut self) -> Result<Value, BenchError> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err(wrong(&"it closed its control socket")),
            Ok(_) => serde_json::from_str(&line).map_err(|error| wrong(&error)),
            Err(error) => Err(wrong(&error)),
        }
    }

    fn answer(&mut self, command: &str) -> Result<Value, BenchError> {
        loop {
            let mut line = self.read()?;
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = line.get("error") {
                return Err(wrong(&format!("{command}: {error}")));
            }
        }
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Value, BenchError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.0.get_mut().write_all(line.as_bytes()).map_err(|error| wrong(&error))?;
        self.answer(command)
    }

    /// As [`Qmp::call`], with a descriptor beside the command.
    fn call_with(
        &mut self,
        command: &str,
        arguments: Value,
        file: BorrowedFd<'_>,
    ) -> Result<Value, BenchError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let files = [file];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        beside.push(SendAncillaryMessage::ScmRights(&files));
        let sent =
            sendmsg(self.0.get_ref(), &[IoSlice::new(line.as_bytes())], &mut beside, SendFlags::empty());
        match sent {
            Ok(bytes) if bytes == line.len() => self.answer(command),
            Ok(_) => Err(wrong(&"it took a part of a command")),
            Err(error) => Err(wrong(&error)),
        }
    }
}

/// Loads a device state into the bare machine in `directory`, which waits for one, and resumes it.
pub(crate) fn load(directory: &Utf8Path, device_state: &[u8]) -> Result<(), BenchError> {
    let held = memfd_create("bare-device-state", MemfdFlags::CLOEXEC).map_err(|error| wrong(&error))?;
    let mut held = std::fs::File::from(held);
    held.write_all(device_state).and_then(|()| held.rewind()).map_err(|error| wrong(&error))?;
    let mut qmp = Qmp::connect(directory)?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.call("migrate-set-capabilities", events)?;
    qmp.call_with("getfd", json!({ "fdname": "state" }), held.as_fd())?;
    qmp.call("migrate-incoming", json!({ "uri": "fd:state" }))?;
    loop {
        let line = qmp.read()?;
        match (line["event"].as_str(), line["data"]["status"].as_str()) {
            (Some("MIGRATION"), Some("completed")) => break,
            (Some("MIGRATION"), Some("failed" | "cancelled")) => {
                return Err(wrong(&"it cannot load the state"));
            }
            _ => {}
        }
    }
    qmp.call("cont", json!({})).map(|_| ())
}

/// Pauses the bare machine in `directory` for its device state and the switch of the disk with index `disk` to `overlay`, and
/// returns the length of the pause: the floor of the pause of a branch. Memory is not copied. After a failure the machine may
/// stay paused.
pub(crate) fn pause(directory: &Utf8Path, disk: usize, overlay: &DiskChange) -> Result<Duration, BenchError> {
    let mut qmp = Qmp::connect(directory)?;
    let blocks = qmp.call("query-block", json!({}))?;
    let device = format!("disk{disk}");
    let is_it = |block: &&Value| {
        block["qdev"].as_str().is_some_and(|path| path.split('/').any(|part| part == device))
    };
    let node = blocks.as_array().into_iter().flatten().find(is_it);
    let node = node.and_then(|block| block["inserted"]["node-name"].as_str());
    let node = node.ok_or_else(|| wrong(&format!("it does not name the node of {device}")))?.to_owned();
    let (next, cache) = (next_name(&node), json!({ "no-flush": true }));
    let file = json!({ "driver": "file", "filename": overlay.path, "locking": "off", "cache": cache });
    let description = json!({
        "driver": "qcow2", "node-name": next, "discard": "unmap", "cache": cache, "file": file, "backing": null,
    });
    qmp.call("blockdev-add", description)?;
    let state = json!({ "filename": directory.join(STATE), "live": false });
    let data = json!({ "node": node, "overlay": next });
    let switch = json!({ "actions": [{ "type": "blockdev-snapshot", "data": data }] });
    let began = Instant::now();
    qmp.call("stop", json!({}))?;
    qmp.call("xen-save-devices-state", state)?;
    qmp.call("transaction", switch)?;
    qmp.call("cont", json!({}))?;
    Ok(began.elapsed())
}

/// Name of the node over `node`. A machine may be paused several times, and QEMU takes names of up to 31 characters: they are
/// numbered.
fn next_name(node: &str) -> String {
    let (stem, number) = node.rsplit_once("-x").unwrap_or((node, "0"));
    match number.parse::<u64>() {
        Ok(number) => format!("{stem}-x{}", number.saturating_add(1)),
        Err(_) => format!("{node}-x1"),
    }
}

#[cfg(test)]
mod tests {
    use super::next_name;

    #[test]
    fn names_of_nodes_stay_short_over_many_pauses() {
        let mut node = "scratch".to_owned();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1_000 {
            node = next_name(&node);
            assert!(node.len() <= 31 && seen.insert(node.clone()), "{node}");
        }
        assert_eq!(node, "scratch-x1000");
        assert_eq!(next_name("disk-xyz"), "disk-xyz-x1");
    }
}
