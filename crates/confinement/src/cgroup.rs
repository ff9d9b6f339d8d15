//! Limits on what a VMM may use, by cgroups: version 2 where its controllers are there, else version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Group of all VMs below each hierarchy.
const PARENT: &str = "microvm";
/// Period over which processor time is counted, in microseconds: the kernel's default (kernel/sched/core.c).
const CPU_PERIOD: u64 = 100_000;

/// Limits of one VM.
pub(crate) struct Limits {
    /// Bytes of memory, page cache of its files included.
    pub(crate) memory: u64,
    /// Threads and processes.
    pub(crate) tasks: u32,
    /// Processor time in percent of one processor; `None`: no limit.
    pub(crate) cpu_percent: Option<u32>,
}

impl Limits {
    /// Microseconds of processor time in each period.
    fn cpu_quota(&self) -> Option<u64> {
        self.cpu_percent.map(|percent| u64::from(percent) * CPU_PERIOD / 100)
    }
}

/// Mount points of the hierarchies with the controllers that are used, by the controller; `v2` is one for all.
fn hierarchies() -> io::Result<Vec<(&'static str, PathBuf)>> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = if_there(fs::read_to_string(root.join("cgroup.controllers")))?.unwrap_or_default();
    if controllers.split_ascii_whitespace().any(|controller| controller == "memory") {
        return Ok(vec![("v2", root.to_owned())]);
    }
    let mut found = Vec::new();
    for name in ["memory", "pids", "cpu"] {
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
    if !has_limits(&found) {
        return Err("no memory or pids controller is mounted".to_owned());
    }
    let probe = format!("probe-{}", std::process::id());
    // The sizes do not matter: nothing ever runs in it.
    let made = make(&probe, &Limits { memory: 64 << 20, tasks: 16, cpu_percent: None });
    remove(&probe);
    made.map_err(|error| error.to_string())?;
    Ok(found.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
}

/// Succeeds if processor time can be limited on this host by this user, else tells the reason. As [`try_out`].
pub(crate) fn try_out_cpu() -> Result<String, String> {
    try_out()?;
    let found = hierarchies().map_err(|error| error.to_string())?;
    let is_there = found.iter().find(|(name, _)| *name == "cpu" || *name == "v2");
    let (name, _) = is_there.ok_or_else(|| "no cpu controller is mounted".to_owned())?;
    let probe = format!("probe-cpu-{}", std::process::id());
    let made = make(&probe, &Limits { memory: 64 << 20, tasks: 16, cpu_percent: Some(50) });
    remove(&probe);
    made.map(|_| (*name).to_owned()).map_err(|error| error.to_string())
}

/// True if memory or tasks can be limited.
fn has_limits(found: &[(&'static str, PathBuf)]) -> bool {
    found.iter().any(|(name, _)| *name != "cpu")
}

/// Makes the groups of a VM with their limits. A group for processor time is made only where that is limited: each costs the
/// host's scheduler.
fn make(id: &str, limits: &Limits) -> io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let found = hierarchies()?;
    if limits.cpu_percent.is_some() && !found.iter().any(|(name, _)| *name == "cpu" || *name == "v2") {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no cpu controller is mounted"));
    }
    for (name, root) in found.into_iter().filter(|(name, _)| *name != "cpu" || limits.cpu_percent.is_some()) {
        let parent = root.join(PARENT);
        let group = parent.join(id);
        if name == "v2" {
            fs::create_dir_all(&parent)?;
            let controllers =
                if limits.cpu_percent.is_some() { "+memory +pids +cpu" } else { "+memory +pids" };
            // A group has the controllers that its parent passes on, so the root has to pass them on as well
            // (cgroups(7)).
            fs::write(root.join("cgroup.subtree_control"), controllers)?;
            fs::write(parent.join("cgroup.subtree_control"), controllers)?;
        }
        fs::create_dir_all(&group)?;
        let set = |file: &str, value: String| fs::write(group.join(file), value);
        match name {
            "v2" => {
                set("memory.max", limits.memory.to_string())?;
                set("pids.max", limits.tasks.to_string())?;
                if let Some(quota) = limits.cpu_quota() {
                    set("cpu.max", format!("{quota} {CPU_PERIOD}"))?;
                }
            }
            "memory" => set("memory.limit_in_bytes", limits.memory.to_string())?,
            "cpu" => {
                set("cpu.cfs_period_us", CPU_PERIOD.to_string())?;
                // -1: none.
                set(
                    "cpu.cfs_quota_us",
                    limits.cpu_quota().map_or_else(|| "-1".to_owned(), |quota| quota.to_string()),
                )?;
            }
            _ => set("pids.max", limits.tasks.to_string())?,
        }
        made.push(group);
    }
    Ok(made)
}

/// Makes the groups of a VM with their limits and puts `pid` into them.
///
/// # Errors
/// If there is no hierarchy any more to make them in, or they cannot be made.
pub(crate) fn confine(id: &str, pid: i32, limits: &Limits) -> io::Result<()> {
    let groups = make(id, limits)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_limited_in_the_groups_of_this_host() {
        if let Err(reason) = try_out_cpu() {
            eprintln!("skipped: {reason}");
            return;
        }
        let id = format!("test-cpu-{}", std::process::id());
        let limits = |cpu_percent| Limits { memory: 64 << 20, tasks: 16, cpu_percent };
        let made = make(&id, &limits(Some(25))).unwrap();
        let found: Vec<String> = made
            .iter()
            .filter_map(|group| {
                let of_v1 = fs::read_to_string(group.join("cpu.cfs_quota_us"))
                    .map(|quota| format!("{} 100000", quota.trim()));
                of_v1.or_else(|_| fs::read_to_string(group.join("cpu.max"))).ok()
            })
            .collect();
        assert_eq!(found.len(), 1, "{made:?}");
        assert_eq!(found[0].trim(), "25000 100000");
        remove(&id);
        assert!(made.iter().all(|group| !group.exists()), "a group is left");
        // One without a limit gets no group for it where groups are apart.
        let plain = make(&id, &limits(None)).unwrap();
        assert!(plain.iter().all(|group| !group.join("cpu.cfs_quota_us").exists()));
        remove(&id);
    }
}
