//! One control group (v2) per command, so that all it started can be ended at once.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/microvm";

/// Memory of a small process, in bytes: `sh` has some 200 KiB of its own and as much in page tables and kernel stack.
const MEMORY_OF_A_PROCESS: u64 = 512 << 10;
/// Processes that are allowed however little memory there is.
const LEAST_PROCESSES: u64 = 256;

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
        let allow = |directory: &Path, controller| {
            let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
        };
        allow(Path::new(ROOT), "+pids");
        // All commands together weigh as much as one thread of the agent, and among them one as much as the other:
        // however many processes a command has, the agent and other commands get their turn.
        allow(Path::new(ROOT), "+cpu");
        if fs::create_dir_all(&parent).is_err() {
            return Self { parent: None };
        }
        allow(&parent, "+cpu");
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
        if let Some(limit) = limits.into_iter().filter_map(number).min() {
            // More small processes than this would fill the memory, and the agent would have none to answer with.
            let fitting = rustix::system::sysinfo().totalram / MEMORY_OF_A_PROCESS;
            let most = (limit / 4 * 3).min(fitting.max(LEAST_PROCESSES));
            let _ = fs::write(parent.join("pids.max"), most.to_string());
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
