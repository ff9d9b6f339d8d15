//! Runs the few host programs we need, with their output kept in bounds and their life bound to the request.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;

use super::cancel::{Cancel, GroupGuard};
use super::error::io_error;

/// Lines of a failed tool that are shown.
const LINES_KEPT: usize = 12;
/// Longer lines are cut: a tool's output is for people.
const LINE_MAX: usize = 400;

/// A host program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Name of the program.
    pub program: &'static str,
    /// Debian package that has it.
    pub package: &'static str,
    /// Its purpose, for error messages.
    pub purpose: &'static str,
}

const SETPRIV: Tool = Tool { program: "setpriv", package: "util-linux", purpose: "ending tools with us" };
const SHELL: Tool = Tool { program: "sh", package: "dash", purpose: "mounting memory for tools" };
const UNSHARE: Tool =
    Tool { program: "unshare", package: "util-linux", purpose: "keeping tools' mounts to themselves" };

impl Tool {
    /// Where it is; administration directories are looked at too, since a user's `PATH` often lacks them.
    pub fn find(self) -> Option<Utf8PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // A directory that is not UTF-8 is left out, the others are not.
        std::env::split_paths(&path)
            .filter_map(|directory| Utf8PathBuf::from_path_buf(directory).ok())
            .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Utf8PathBuf::from))
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(self.program))
            .find(|candidate| {
                rustix::fs::access(candidate.as_std_path(), rustix::fs::Access::EXEC_OK).is_ok()
                    && candidate.is_file()
            })
    }

    fn located(self) -> Result<Utf8PathBuf, StorageError> {
        let missing =
            || StorageError::ToolMissing { tool: self.program.into(), package: self.package.into() };
        self.find().ok_or_else(missing)
    }

    /// A command for it, or the error that names its package. Messages are in English whatever the user's locale, since
    /// some are read by us.
    pub fn command(self) -> Result<Command, StorageError> {
        let mut command = Command::new(self.located()?);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        Ok(command)
    }

    /// A command for it that is killed when we die, however that happens. Not for tools that change their user.
    pub fn bound_command(self) -> Result<Command, StorageError> {
        let path = self.located()?;
        let mut command = SETPRIV.command()?;
        command.args(["--pdeathsig", "KILL", "--"]).arg(path);
        Ok(command)
    }

    /// Like [`Self::command`], in new mount and process namespaces: mounts and processes of the tool end with it. Needs root.
    pub fn isolated_command(self) -> Result<Command, StorageError> {
        let path = self.located()?;
        let mut command = UNSHARE.bound_command()?;
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
            ])
            .arg(path);
        Ok(command)
    }

    /// Like [`Self::isolated_command`], with an empty file system of at most `mib` MiB of memory at `directory`, which only the tool
    /// sees and which ends with it.
    pub fn command_with_memory(self, directory: &Utf8Path, mib: u64) -> Result<Command, StorageError> {
        let path = self.located()?;
        let mut command = SHELL.isolated_command()?;
        command
            .args(["-c", "mount -t tmpfs -o \"size=$1m,mode=755\" tmpfs \"$0\" && shift && exec \"$@\""])
            .args([directory.as_str(), &mib.to_string(), path.as_str()]);
        Ok(command)
    }

    /// Runs it to its end, handing every line of its output and error output to `line`.
    pub fn run(
        self,
        mut command: Command,
        cancel: &Cancel,
        line: impl FnMut(&str),
    ) -> Result<(), StorageError> {
        let (reader, writer) =
            std::io::pipe().map_err(io_error("opening a pipe for", Utf8Path::new(self.program)))?;
        let second =
            writer.try_clone().map_err(io_error("opening a pipe for", Utf8Path::new(self.program)))?;
        command.stdout(writer).stderr(second);
        let running = Running::start(self, command, cancel)?;
        let tail = read_lines(reader, line);
        running.finish(&tail)
    }

    /// Runs it and returns what it printed (at most 1 MiB).
    pub fn output(self, mut command: Command, cancel: &Cancel) -> Result<String, StorageError> {
        let mut lines = String::new();
        let (reader, writer) =
            std::io::pipe().map_err(io_error("opening a pipe for", Utf8Path::new(self.program)))?;
        command.stdout(writer).stderr(Stdio::null());
        let running = Running::start(self, command, cancel)?;
        reader
            .take(1 << 20)
            .read_to_string(&mut lines)
            .map_err(io_error("reading from", Utf8Path::new(self.program)))?;
        running.finish("")?;
        Ok(lines)
    }
}

/// A tool that runs, in its own process group; killed when dropped.
pub struct Running {
    tool: Tool,
    child: Child,
    guard: Option<GroupGuard>,
    cancel: Cancel,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Starts it. The command is dropped here, and with it our copies of its pipes.
    pub fn start(tool: Tool, mut command: Command, cancel: &Cancel) -> Result<Self, StorageError> {
        cancel.check()?;
        let child =
            command.process_group(0).spawn().map_err(io_error("starting", Utf8Path::new(tool.program)))?;
        let guard = cancel.watch_group(child.id());
        Ok(Self { tool, child, guard: Some(guard), cancel: cancel.clone(), ended: None })
    }

    /// Its standard output, if that was piped.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for its end.
    pub fn finish(mut self, tail: &str) -> Result<(), StorageError> {
        self.wait_unreaped();
        self.guard = None;
        let status = self.child.wait().map_err(io_error("waiting for", Utf8Path::new(self.tool.program)))?;
        self.ended = Some(status);
        self.cancel.check()?;
        if status.success() {
            return Ok(());
        }
        let detail = if tail.is_empty() { "it printed nothing".to_owned() } else { tail.to_owned() };
        Err(StorageError::ToolFailed { tool: self.tool.program.into(), status: status.to_string(), detail })
    }

    /// Waits without reaping, so that the process number stays taken until the guard has forgotten it.
    fn wait_unreaped(&self) {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            while let Err(rustix::io::Errno::INTR) =
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
            self.wait_unreaped();
            self.guard = None;
            let _ = self.child.wait();
        }
    }
}

/// Hands on all lines and returns the last ones, without control characters.
pub fn read_lines(reader: impl Read, mut line: impl FnMut(&str)) -> String {
    let mut tail = VecDeque::new();
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.by_ref().take(1 << 16).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .take(LINE_MAX)
            .collect();
        if text.trim().is_empty() {
            continue;
        }
        line(&text);
        if tail.len() == LINES_KEPT {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    Vec::from(tail).join("\n")
}
#[cfg(test)]
mod tests {
    use super::*;

    const SH: Tool = Tool { program: "sh", package: "dash", purpose: "tests" };

    #[test]
    fn a_missing_tool_names_its_package() {
        let tool = Tool { program: "no-such-program-here", package: "some-package", purpose: "tests" };
        let error = tool.command().unwrap_err();
        assert!(matches!(error, StorageError::ToolMissing { package, .. } if package == "some-package"));
    }

    #[test]
    fn a_failing_tool_shows_its_last_lines() {
        let mut command = SH.command().unwrap();
        command.args(["-c", "seq 1 100; echo last words >&2; exit 3"]);
        let error = SH.run(command, &Cancel::default(), |_| {}).unwrap_err();
        let StorageError::ToolFailed { status, detail, .. } = error else { panic!("{error:?}") };
        assert!(
            status.contains('3') && detail.ends_with("last words") && !detail.starts_with('1'),
            "{status} {detail}"
        );
    }

    #[test]
    fn a_cancelled_tool_is_killed_with_all_it_started() {
        let cancel = Cancel::default();
        let mut command = SH.command().unwrap();
        command.args(["-c", "sleep 1000 & echo ready; wait"]);
        let other = cancel.clone();
        let error = SH.run(command, &cancel, |_| other.cancel()).unwrap_err();
        assert!(matches!(error, StorageError::Io { .. }));
    }
}
