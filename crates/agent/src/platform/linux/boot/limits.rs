//! Limits of an ordinary machine, in place of those that a kernel derives from little memory.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Open files of a process: what systemd and container engines give, hard what the kernel allows at most (`fs.nr_open`).
/// The soft limit stays far below: programs that close every number up to it take seconds otherwise.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };

/// Watches cost memory only when they are made (about 1 KiB each).
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/fs/inotify/max_user_watches", "524288"),
    ("/proc/sys/fs/inotify/max_user_instances", "1024"),
];

/// Raises them, for the agent and all that it starts. A kernel without a setting does without.
pub(super) fn raise() {
    if let Err(error) = setrlimit(Resource::Nofile, OPEN_FILES) {
        crate::core::console::say(&format!("open files stay limited as the kernel has it: {error}"));
    }
    for (path, value) in SETTINGS {
        if std::path::Path::new(path).exists()
            && let Err(error) = std::fs::write(path, value)
        {
            crate::core::console::say(&format!("{path} stays as the kernel has it: {error}"));
        }
    }
}
