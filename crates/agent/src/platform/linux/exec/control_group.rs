//! One control group (v2) per command, so that all it started can be ended at once.
//!
//! Making and removing a group costs an emulated guest 0.7 ms, so a group that a command has left empty serves the next.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/microvm";

/// Memory of a thread or process that does nothing yet, in bytes: as `threads-max` of the kernel counts, eight times a
/// kernel stack of 16 KiB. What processes take beyond is for the out-of-memory killer, which spares the agent.
const MEMORY_OF_A_PROCESS: u64 = 128 << 10;
/// Processes that are allowed however little memory there is.
const LEAST_PROCESSES: u64 = 256;
/// Empty groups kept for the next commands.
const MOST_IDLE: usize = 4;

/// Makes groups; `None` inside where the kernel has none or they are not ours to make.
#[derive(Debug, Default)]
pub(in crate::platform::linux) struct ControlGroups {
    parent: Option<PathBuf>,
    /// Number of the next group.
    next: AtomicU64,
    idle: Mutex<Vec<ControlGroup>>,
}

/// The group of one command; removed when dropped, if no process is left in it.
#[derive(Debug)]
pub(in crate::platform::linux) struct ControlGroup {
    path: PathBuf,
    directory: OwnedFd,
    /// Says whether there are processes in it.
    events: OwnedFd,
}

impl ControlGroups {
    /// Prepares the parent group. All commands together get three quarters of the guest's processes, so that a fork
    /// bomb leaves room for the agent and for whoever comes to end it.
    pub(in crate::platform::linux) fn prepare() -> Self {
        let parent = PathBuf::from(PARENT);
        if !Path::new(ROOT).join("cgroup.controllers").exists() {
            return Self::default();
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
            return Self::default();
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
        Self { parent: Some(parent), ..Self::default() }
    }

    /// No groups at all: an agent that runs beside others on a host.
    pub(in crate::platform::linux) fn none() -> Self {
        Self::default()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<ControlGroup>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty group: one that was given back, or a new one.
    pub(in crate::platform::linux) fn take(&self) -> Option<ControlGroup> {
        let parent = self.parent.as_ref()?;
        let kept = self.idle().pop();
        kept.or_else(|| {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            ControlGroup::make(parent.join(format!("command-{number}")))
        })
    }

    /// Takes back the group of a command that has ended, for the next one; what a process lives on in is not reused.
    pub(in crate::platform::linux) fn give_back(&self, group: ControlGroup) {
        let mut idle = self.idle();
        // A process that lives on would be killed with the next command of this group.
        if idle.len() < MOST_IDLE && group.is_empty() {
            idle.push(group);
        }
    }
}

impl ControlGroup {
    fn make(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).ok()?;
        let opened = open(&path, OFlags::PATH | OFlags::DIRECTORY)
            .zip(open(&path.join("cgroup.events"), OFlags::RDONLY));
        let Some((directory, events)) = opened else {
            let _ = fs::remove_dir(&path);
            return None;
        };
        Some(Self { path, directory, events })
    }

    /// Its directory, by which a process joins it.
    pub(in crate::platform::linux) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Kills every process of the group (Linux 5.14 and newer); `false` if that cannot be done.
    pub(in crate::platform::linux) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }

    fn is_empty(&self) -> bool {
        let mut text = [0; 64];
        // One that cannot be read counts as used: it is not given to another command.
        let count = rustix::io::pread(&self.events, &mut text, 0).unwrap_or(0);
        text[..count].split(|byte| *byte == b'\n').any(|line| line == b"populated 0")
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Refused while background processes live on; an empty leftover directory costs little.
        let _ = fs::remove_dir(&self.path);
    }
}

fn open(path: &Path, flags: OFlags) -> Option<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).ok()
}
