//! One control group (v2) per command, so that all it started can be ended at once.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/microvm";

/// Makes groups; `None` inside where the kernel has none or they are not ours to make.
#[derive(Debug)]
pub(crate) struct ControlGroups {
    parent: Option<PathBuf>,
}

/// The group of one command; removed with its last process.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    path: PathBuf,
}

impl ControlGroups {
    /// Prepares the parent group. All commands together get three quarters of the guest's processes, so that a fork
    /// bomb leaves room for the agent and for whoever comes to end it.
    pub(crate) fn prepare() -> Self {
        let parent = PathBuf::from(PARENT);
        if !Path::new(ROOT).join("cgroup.controllers").exists() {
            return Self { parent: None };
        }
        // Without the controller only the limit is missing, not the groups.
        let _ = fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+pids");
        if fs::create_dir_all(&parent).is_err() {
            return Self { parent: None };
        }
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
        if let Some(limit) = limits.into_iter().filter_map(number).min() {
            let _ = fs::write(parent.join("pids.max"), (limit / 4 * 3).to_string());
        }
        Self { parent: Some(parent) }
    }

    /// No groups at all: an agent that runs beside others on a host.
    pub(crate) const fn none() -> Self {
        Self { parent: None }
    }

    /// Makes a group and opens the file through which a process joins it.
    pub(crate) fn make(&self, id: &str) -> Option<(ControlGroup, OwnedFd)> {
        let path = self.parent.as_ref()?.join(id);
        fs::create_dir(&path).ok()?;
        let group = ControlGroup { path };
        let file = rustix::fs::open(
            group.path.join("cgroup.procs"),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        Some((group, file.ok()?))
    }
}

impl ControlGroup {
    /// Kills every process of the group (Linux 5.14 and newer); `false` if that cannot be done.
    pub(crate) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Refused while background processes live on; an empty leftover directory costs little.
        let _ = fs::remove_dir(&self.path);
    }
}
