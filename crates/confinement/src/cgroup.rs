//! Limits on what a VMM may use, by cgroups: version 2 where its controllers are there, else version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Group of all VMs below each hierarchy.
const PARENT: &str = "microvm";

/// Where a controller's hierarchy is mounted, if it is and we may use it.
fn hierarchies() -> Vec<(&'static str, PathBuf)> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_ascii_whitespace().any(|controller| controller == "memory") {
        return vec![("v2", root.to_owned())];
    }
    ["memory", "pids"]
        .into_iter()
        .map(|name| (name, root.join(name)))
        .filter(|(_, path)| path.join("tasks").exists())
        .collect()
}

/// Whether limits can be set on this host by this user, or why not.
pub(crate) fn available() -> Result<String, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root or a delegated cgroup".to_owned());
    }
    let found = hierarchies();
    if found.is_empty() {
        return Err("no memory or pids controller is mounted".to_owned());
    }
    Ok(found.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
}

/// Makes the groups of a VM with their limits and puts `pid` into them. Returns the directories made.
pub(crate) fn confine(id: &str, pid: i32, memory_limit: u64, task_limit: u32) -> io::Result<Vec<String>> {
    let mut made = Vec::new();
    for (name, root) in hierarchies() {
        let parent = root.join(PARENT);
        let group = parent.join(id);
        fs::create_dir_all(&group)?;
        made.push(group.to_string_lossy().into_owned());
        let set = |file: &str, value: String| fs::write(group.join(file), value);
        match name {
            "v2" => {
                fs::write(root.join("cgroup.subtree_control"), "+memory +pids")?;
                fs::write(parent.join("cgroup.subtree_control"), "+memory +pids")?;
                set("memory.max", memory_limit.to_string())?;
                set("pids.max", task_limit.to_string())?;
            }
            "memory" => set("memory.limit_in_bytes", memory_limit.to_string())?,
            _ => set("pids.max", task_limit.to_string())?,
        }
        set("cgroup.procs", pid.to_string())?;
    }
    Ok(made)
}

/// Removes groups whose processes have ended.
pub(crate) fn remove(groups: &[String]) {
    for group in groups {
        // Still busy for a moment after the last process: whoever sweeps the VM next tries again.
        let _ = fs::remove_dir(group);
    }
}
