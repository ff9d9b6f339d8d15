//! Limits on what a VMM may use, by cgroups: version 2 where its controllers are there, else version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Group of all VMs below each hierarchy.
const PARENT: &str = "microvm";

/// Mount point of a controller's hierarchy, if there is one.
fn hierarchies() -> io::Result<Vec<(&'static str, PathBuf)>> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = if_there(fs::read_to_string(root.join("cgroup.controllers")))?.unwrap_or_default();
    if controllers.split_ascii_whitespace().any(|controller| controller == "memory") {
        return Ok(vec![("v2", root.to_owned())]);
    }
    let mut found = Vec::new();
    for name in ["memory", "pids"] {
        let path = root.join(name);
        if path.join("tasks").try_exists()? {
            found.push((name, path));
        }
    }
    Ok(found)
}

/// `None` for what is not there, or was removed while it was read (`ENODEV`, cgroups(7)).
fn if_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Succeeds if limits can be set on this host by this user, else tells the reason. Makes a group and removes it again: a mounted
/// hierarchy may be read-only or not delegated.
pub(crate) fn try_out() -> Result<String, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root or a delegated cgroup".to_owned());
    }
    let found = hierarchies().map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("no memory or pids controller is mounted".to_owned());
    }
    let probe = format!("probe-{}", std::process::id());
    let made = make(&probe, 64 << 20, 16);
    remove(&probe);
    made.map_err(|error| error.to_string())?;
    Ok(found.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
}

/// Makes the groups of a VM with their limits.
fn make(id: &str, memory_limit: u64, task_limit: u32) -> io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for (name, root) in hierarchies()? {
        let parent = root.join(PARENT);
        let group = parent.join(id);
        if name == "v2" {
            fs::create_dir_all(&parent)?;
            fs::write(root.join("cgroup.subtree_control"), "+memory +pids")?;
            fs::write(parent.join("cgroup.subtree_control"), "+memory +pids")?;
        }
        fs::create_dir_all(&group)?;
        let set = |file: &str, value: String| fs::write(group.join(file), value);
        match name {
            "v2" => {
                set("memory.max", memory_limit.to_string())?;
                set("pids.max", task_limit.to_string())?;
            }
            "memory" => set("memory.limit_in_bytes", memory_limit.to_string())?,
            _ => set("pids.max", task_limit.to_string())?,
        }
        made.push(group);
    }
    Ok(made)
}

/// Makes the groups of a VM with their limits and puts `pid` into them.
///
/// # Errors
/// If there is no hierarchy any more to make them in, or they cannot be made.
pub(crate) fn confine(id: &str, pid: i32, memory_limit: u64, task_limit: u32) -> io::Result<()> {
    let groups = make(id, memory_limit, task_limit)?;
    if groups.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no memory or pids controller is mounted"));
    }
    for group in groups {
        fs::write(group.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

/// Processes in the groups of a VM.
pub(crate) fn processes(id: &str) -> io::Result<Vec<i32>> {
    let mut found = std::collections::BTreeSet::new();
    for (_, root) in hierarchies()? {
        let list = if_there(fs::read_to_string(root.join(PARENT).join(id).join("cgroup.procs")))?;
        found.extend(list.iter().flat_map(|list| list.lines()).filter_map(|line| line.parse::<i32>().ok()));
    }
    Ok(found.into_iter().collect())
}

/// Removes the groups of a VM whose processes have ended.
pub(crate) fn remove(id: &str) {
    // A group that stays is empty, and is used again.
    for (_, root) in hierarchies().unwrap_or_default() {
        let group = root.join(PARENT).join(id);
        // A group stays busy for a moment after its last process was waited for, and nothing tells when it is not.
        for _ in 0..250 {
            match fs::remove_dir(&group) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(4))
                }
                _ => break,
            }
        }
    }
}
