//! A root of its own with images and kernels, the real program in it, and what the host shows of it.
#![allow(dead_code, reason = "every test program uses its own part")]

pub(crate) mod agent_killer;
pub(crate) mod dice;
pub(crate) mod guest_word;
pub(crate) mod shared_files;
pub(crate) mod small_disk;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};
use serde_json::Value;

/// Longest time for one command, in seconds.
const LIMIT: &str = "100";

/// A root directory for one test. All that was started on it is ended when it is dropped.
pub(crate) struct Home {
    directory: tempfile::TempDir,
    agent: PathBuf,
    variables: Vec<(String, String)>,
}

impl Home {
    /// `None`, with the reason on standard error, where something is missing.
    pub(crate) fn open() -> Option<Self> {
        let variable = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
            if path.is_none() {
                eprintln!("SKIPPED: {name} does not name anything");
            }
            path
        };
        let furnished = variable("MICROVM_TEST_ROOT")?;
        let agent = variable("MICROVM_TEST_AGENT")?;
        // Beside what it links to, and open to the users that VMMs run under.
        let directory = tempfile::Builder::new().prefix("test-").tempdir_in(&furnished).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut link = Command::new("cp");
        link.args(["--archive", "--link"]).arg(furnished.join("images")).arg(furnished.join("kernels"));
        assert!(link.arg(directory.path()).status().unwrap().success(), "the root could not be furnished");
        Some(Self { directory, agent, variables: Vec::new() })
    }

    /// Sets a variable for all commands from now on, and so for a server that they start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A command of the program itself, to be started by the caller.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        self.dress(&mut command);
        command.args(arguments);
        command
    }

    fn dress(&self, command: &mut Command) {
        command.env("MICROVM_ROOT", self.root()).env("MICROVM_AGENT", &self.agent).stdin(Stdio::null());
        command.envs(self.variables.iter().cloned());
    }

    /// Runs the program with a limit on its time.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        self.dress(&mut command);
        command.args(["--kill-after=5", LIMIT, env!("CARGO_BIN_EXE_microvm")]).args(arguments);
        command.output().unwrap()
    }

    /// Runs what must succeed; gives its standard output.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {:?}\n{}",
            output.status.code(),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs what must fail; gives the exit code and the problem.
    pub(crate) fn must_fail(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.run(&[&["--output", "json"], arguments].concat());
        assert!(!output.status.success(), "{arguments:?} succeeded: {}", text(&output.stdout));
        let error = text(&output.stderr);
        // The line that tells of the start of a server may come before it.
        let begin = error.find('{').unwrap_or_else(|| panic!("{arguments:?}: no problem in JSON: {error}"));
        let problem: Value = serde_json::from_str(&error[begin..]).unwrap();
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{problem}");
        (output.status.code().unwrap(), problem)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.must(&[&["--output", "json"], arguments].concat())).unwrap()
    }

    /// Name and state of every VM.
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let list = self.json(&["ls"]);
        let word = |vm: &Value, field: &str| vm[field].as_str().unwrap().to_owned();
        list["vms"].as_array().unwrap().iter().map(|vm| (word(vm, "name"), word(vm, "state"))).collect()
    }

    /// State of one VM, and why it failed.
    pub(crate) fn state(&self, vm: &str) -> (String, String) {
        let shown = self.json(&["inspect", vm]);
        let word = |field: &str| shown[field].as_str().unwrap_or_default().to_owned();
        (word("state"), word("failure"))
    }

    /// The end of the server's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.root().join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The server on this root, if one lives.
    pub(crate) fn server(&self) -> Option<i32> {
        server_on(self.root())
    }

    /// Kills the server, if one lives, and waits until its socket is gone: a process that it was just starting has it open
    /// for a moment longer, and whoever connects then hears nothing.
    pub(crate) fn kill_server(&self) {
        let Some(pid) = self.server() else { return };
        let sockets = listening(&self.root().join("run/api.sock"));
        signal("KILL", pid);
        wait_for_end(pid);
        until("its socket is gone", 10, || {
            listening(&self.root().join("run/api.sock")).is_disjoint(&sockets)
        });
    }

    /// Asks the server to end, and waits until it has.
    pub(crate) fn end_server(&self) {
        end_server_on(self.root());
    }

    /// Ids of the VMs that have files.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        names(&self.root().join("vms"))
    }

    /// VMM and supervisor of a VM, if they live.
    pub(crate) fn processes_of(&self, id: &str) -> Option<(i32, i32)> {
        let record = fs::read(self.root().join("vms").join(id).join("process.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).ok()?;
        let pid = |who: &str| i32::try_from(record[who]["pid"].as_i64()?).ok();
        let (vmm, supervisor) = (pid("vmm")?, pid("supervisor")?);
        // A number may have been used again.
        let is =
            |pid: i32, word: &str| words_of(pid).is_some_and(|words| words.iter().any(|one| one == word));
        (is(vmm, &format!("guest={id}")) && is(supervisor, "__supervise-vmm")).then_some((vmm, supervisor))
    }

    /// Panics if anything is left of VMs with these ids or in the directories of work, also after a while: a request that was
    /// cut off is still being undone when its client has gone.
    pub(crate) fn expect_nothing_left(&self, ids: &BTreeSet<String>) {
        let mut left = Vec::new();
        let gone = reached_within(5, || {
            left = self.left(ids);
            left.is_empty()
        });
        assert!(gone, "left behind:\n{}", left.join("\n"));
    }

    /// True if a process works in a VM's directory.
    fn works_here(&self, pid: i32) -> bool {
        fs::read_link(format!("/proc/{pid}/cwd"))
            .is_ok_and(|folder| folder.starts_with(self.root().join("vms")))
    }

    /// Remains of VMs with these ids, and in the working directories.
    fn left(&self, ids: &BTreeSet<String>) -> Vec<String> {
        let mut left = Vec::new();
        for (pid, words) in processes() {
            let works_here = self.works_here(pid);
            let is_vmm =
                words.iter().any(|word| word.strip_prefix("guest=").is_some_and(|id| ids.contains(id)));
            if works_here || is_vmm {
                left.push(format!("process {pid}: {}", words.join(" ")));
            }
        }
        for id in ids {
            for hierarchy in ["", "memory/", "pids/"] {
                let group = format!("/sys/fs/cgroup/{hierarchy}microvm/{id}");
                if Path::new(&group).exists() {
                    left.push(group);
                }
            }
        }
        left.extend(names(&self.root().join("vms")).into_iter().map(|name| format!("vms/{name}")));
        let work = names(&self.root().join("tmp"));
        left.extend(work.into_iter().filter(|name| name != ".gate").map(|name| format!("tmp/{name}")));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.root().to_str().unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(here)).map(|line| format!("mount {line}")));
        left
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log ends with:\n{}", self.log());
        }
        // Also on roots that a test has made for itself below this one.
        let servers = processes().into_iter().filter(|(_, words)| {
            words.iter().any(|word| word == "serve")
                && words.iter().any(|word| Path::new(word).starts_with(self.root()))
        });
        // Also VMMs whose supervisor was killed.
        let below = names(self.root()).into_iter().map(|name| self.root().join(name).join("vms"));
        let ids = below.chain([self.root().join("vms")]).flat_map(|vms| names(&vms));
        let marks: BTreeSet<String> = ids.map(|id| format!("guest={id}")).collect();
        let vmms = processes().into_iter().filter(|(_, words)| words.iter().any(|word| marks.contains(word)));
        for (pid, _) in servers.chain(vmms) {
            signal("KILL", pid);
            wait_for_end(pid);
        }
        // A supervisor notes how its VMM ended before it ends itself; what it writes would outlive the directory.
        let works_below = |pid: i32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.starts_with(self.root()))
        };
        for (pid, _) in processes().into_iter().filter(|(pid, _)| works_below(*pid)) {
            wait_for_end(pid);
        }
    }
}

/// The server on a root, if one lives.
pub(crate) fn server_on(root: &Path) -> Option<i32> {
    let mark = root.to_str().unwrap();
    let serves =
        |words: &[String]| words.iter().any(|word| word == mark) && words.iter().any(|word| word == "serve");
    let serving: BTreeSet<i32> =
        processes().into_iter().filter(|(_, words)| serves(words)).map(|(pid, _)| pid).collect();
    // A process that the server is just starting has its command line until it executes another program.
    serving.iter().copied().find(|pid| !parent_of(*pid).is_some_and(|parent| serving.contains(&parent)))
}

/// Number of the parent of a process (`/proc/<pid>/stat`, proc(5): the second field after the name in brackets).
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Asks the server on a root to end, and waits until it has.
pub(crate) fn end_server_on(root: &Path) {
    if let Some(pid) = server_on(root) {
        signal("TERM", pid);
        wait_for_end(pid);
    }
}

/// Waits for what no event of the program's interface tells, for as long as a host of one's own would need at most; a
/// shared one gets three times as long.
pub(crate) fn until(what: &str, seconds: u64, reached: impl FnMut() -> bool) {
    assert!(reached_within(seconds, reached), "after 3 × {seconds} s it is not so that {what}");
}

/// True if the condition holds within the time that [`until`] waits.
fn reached_within(seconds: u64, mut reached: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + 3 * Duration::from_secs(seconds);
    while !reached() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Names in a directory; none if it does not exist.
pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn words_of(pid: i32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(line.split(|byte| *byte == 0).map(text).collect())
}

/// Every process with the words of its command line.
fn processes() -> Vec<(i32, Vec<String>)> {
    let pids = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    pids.filter_map(|pid| Some((pid, words_of(pid)?))).collect()
}

/// Numbers of the sockets of this path, whoever listens there (`/proc/net/unix`: the number is the seventh word).
fn listening(path: &Path) -> BTreeSet<String> {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let words = sockets.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.get(7) == path.to_str().as_ref()).map(|words| words[6].to_owned()).collect()
}

/// Sends a signal; a process that has ended is fine.
pub(crate) fn signal(name: &str, pid: i32) {
    let mut kill = Command::new("kill");
    let _ = kill.args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
}

/// Waits until a process has ended, whether or not its parent has taken notice: the first process of some machines looks
/// for its dead every two seconds only.
pub(crate) fn wait_for_end(pid: i32) {
    let process = Pid::from_raw(pid).unwrap();
    let Ok(process) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else { return };
    let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "process {pid} does not end");
}
