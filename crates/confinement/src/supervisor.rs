//! The supervisor: a process of one thread that starts a VMM in its cage and stays with it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::cage::folders;
use crate::cage::{self, CageError, LOCK_STEP, OPEN_STEP, opens_inside};
use crate::capped_log::CappedLog;
use crate::cgroup;
use crate::clone::{Side, clone};
use crate::descriptors::duplicate;
use crate::filters::open_filter::{self, OpenFilter};
use crate::filters::{call_filter, folder_filter};
use crate::first_call;
use crate::handshake::{GO, Report};
use crate::layers::NAMESPACES;
use crate::process::record::{ExitRecord, ProcessRecord, SupervisorLock};
use crate::process::{ProcessIdentity, boot_id};
use crate::spec::{CageSpec, FileOwner};

/// Cap of `vmm.log`, the VMM's own messages, in bytes.
const VMM_LOG_CAP: u64 = 256 * 1024;
/// Points that the kernel adds to a VMM's badness when it looks for a process to end (proc(5), -1000 to 1000).
const VMM_OOM_SCORE: &str = "500";
/// The supervisor's words to the child.
const BUILD: &[u8; 1] = b"b";
const EXECUTE: &[u8; 1] = b"x";

/// Body of the hidden command: standard input is the socket to the server. Returns when the VMM has ended.
#[must_use]
pub fn supervise() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Everything worth telling went through the socket; if that is gone there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> io::Result<()> {
    // What is made here is for the server's user alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    close_inherited()?;
    let mut server = UnixStream::from(duplicate(io::stdin().as_fd())?);
    let mut reader = BufReader::new(server.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let spec: CageSpec = serde_json::from_str(&line)?;
    // Own session: no terminal signal reaches us or the VMM.
    let _ = nix::unistd::setsid();
    let _lock = match enter(&spec.directory) {
        Ok(lock) => lock,
        Err(failed) => return tell(&mut server, failed),
    };
    match start(&spec, &mut server, &mut reader) {
        Ok(running) => {
            report(&mut server, &Report::Started)?;
            drop((server, reader));
            detach_standard_streams()?;
            running.attend(&spec)
        }
        Err(failed) => tell(&mut server, failed),
    }
}

/// Works in the directory of the VM from here on, alone: no other supervisor does while the lock is held.
fn enter(directory: &camino::Utf8Path) -> Result<SupervisorLock, CageError> {
    at("entering the VM's directory", nix::unistd::chdir(directory.as_std_path()))?;
    // One that was overtaken may still be at its end in this directory.
    let lock = at("waiting for an earlier supervisor", SupervisorLock::take(directory))?;
    at("forgetting how the last VMM ended", ExitRecord::forget(directory))?;
    Ok(lock)
}

fn tell(server: &mut UnixStream, CageError { step, error }: CageError) -> io::Result<()> {
    report(server, &Report::Failed { step: step.to_owned(), detail: error.to_string() })
}

/// Closes whatever the server had open without close-on-exec, by its own parents' carelessness: the VMM would get it too.
fn close_inherited() -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: this process has one thread and has opened nothing yet, so no number above the standard ones is in use.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens a file that no symbolic link leads to: the path was made real when the VM was made, and a guest that may write to
/// the folder since does not choose what is opened with our rights.
fn open_real(path: &camino::Utf8Path, writable: bool) -> io::Result<File> {
    let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    let how = OpenHow::new()
        .flags(access | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(AT_FDCWD, path.as_std_path(), how) {
        Ok(descriptor) => Ok(File::from(descriptor)),
        Err(nix::errno::Errno::ELOOP) => {
            Err(io::Error::other(format!("{path} leads over a symbolic link now")))
        }
        Err(error) => Err(io::Error::other(format!("{path}: {error}"))),
    }
}

fn report(server: &mut UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    server.write_all(&line)
}

fn own_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((duplicate(read)?, duplicate(write)?))
}

struct Running {
    pid: Pid,
    console: File,
    messages: File,
    opens: Option<OpenFilter>,
}

/// Kills the child when a step fails before the VMM runs.
struct ChildGuard<'a>(Option<(Pid, &'a str)>);

impl Drop for ChildGuard<'_> {
    fn drop(&mut self) {
        if let Some((pid, id)) = self.0.take() {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            cgroup::remove(id);
        }
    }
}

fn at<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, CageError> {
    result.map_err(|error| CageError { step, error: error.into() })
}

fn start(
    spec: &CageSpec,
    server: &mut UnixStream,
    reader: &mut BufReader<UnixStream>,
) -> Result<Running, CageError> {
    let mut inherited: Vec<(OwnedFd, RawFd)> = Vec::new();
    for listener in &spec.listeners {
        // The working directory is the VM's: a short name has no trouble with the 108 bytes a socket address holds.
        let _ = std::fs::remove_file(&listener.name);
        let socket = at("making its sockets", UnixListener::bind(&listener.name))?;
        inherited.push((at("making its sockets", duplicate(socket))?, listener.descriptor));
    }
    for file in spec.files.iter().filter(|file| !opens_inside(spec, file)) {
        if file.owner == FileOwner::Vm {
            let opened = OpenOptions::new().read(true).write(file.writable).open(&file.path);
            let opened = opened.map_err(|error| io::Error::other(format!("{}: {error}", file.path)));
            inherited.push((at(OPEN_STEP, opened.and_then(duplicate))?, file.descriptor));
            continue;
        }
        let opened = at(OPEN_STEP, open_real(&file.path, file.writable))?;
        // The lock lives with this open file, which is exactly as long as the VMM: no two VMs write one disk.
        let locked = if file.writable { opened.try_lock() } else { opened.try_lock_shared() };
        if locked.is_err() {
            let error = io::Error::other(format!("{} is in use by another VM", file.path));
            return Err(CageError { step: LOCK_STEP, error });
        }
        inherited.push((at(OPEN_STEP, duplicate(opened))?, file.descriptor));
    }
    let (console, console_end) = at("making the console pipe", own_pipe())?;
    let (messages, messages_end) = at("making the message pipe", own_pipe())?;
    // A pipe each way: the end of the one tells the child that we are gone, the end of the other tells us that it has
    // executed.
    let (mut go, mut go_end) = at("making a pipe", own_pipe().map(|(r, w)| (File::from(r), File::from(w))))?;
    let (mut failure, mut failure_end) =
        at("making a pipe", own_pipe().map(|(r, w)| (File::from(r), File::from(w))))?;
    inherited.push((console_end, spec.console_descriptor));
    let null = at("opening /dev/null", OpenOptions::new().read(true).open("/dev/null").and_then(duplicate))?;
    inherited.push((null, 0));

    let (filter_end, filter) = at("making a socket", UnixStream::pair())?;
    let filter = (at("making a socket", duplicate(filter))?, at("making a socket", duplicate(filter_end))?);

    // Only root may map owners, and only outside of the cage.
    let folders = match spec.user {
        Some(user) => folders::detach(&spec.folders, Some(user))?,
        None => Vec::new(),
    };

    let pid = match at("making its namespaces", clone(NAMESPACES))? {
        Side::Child => {
            // The parent's ends: held here as well, they would never be seen to close.
            drop((go_end, failure, console, messages, filter.0));
            let ends = ChildEnds { messages: &messages_end, filter: &filter.1, failure: &mut failure_end };
            let CageError { step, error } = child(spec, &mut go, &inherited, ends, folders);
            let _ = failure_end.write_all(format!("{step}\n{error}").as_bytes());
            std::process::exit(127);
        }
        Side::Parent(pid) => Pid::from_raw(pid),
    };
    let mut guard = ChildGuard(Some((pid, &spec.id)));
    // The child's ends, for the same reason.
    drop((go, failure_end, inherited, messages_end, filter.1, folders));
    at("mapping its user", map_ids(pid, spec.inside_id(), spec.user))?;
    // Where memory ends, a VM goes before the server and the supervisors that keep order among all of them.
    at(
        "ranking it for the end of memory",
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), VMM_OOM_SCORE),
    )?;
    // The child builds its cage while its cgroups are made.
    at("letting it build its cage", go_end.write_all(BUILD))?;
    if spec.limits {
        let limits = cgroup::Limits {
            memory: spec.memory_limit,
            tasks: spec.task_limit,
            cpu_percent: spec.cpu_percent,
        };
        let confined = cgroup::confine(&spec.id, pid.as_raw(), &limits);
        at("setting its cgroup limits", confined)?;
    }
    let record = ProcessRecord {
        version: 1,
        vmm: at("identifying it", ProcessIdentity::of(pid.as_raw()))?,
        supervisor: at("identifying its supervisor", ProcessIdentity::of(Pid::this().as_raw()))?,
        boot_id: at("identifying this boot", boot_id())?,
        layers: if spec.limits {
            vec!["cage".to_owned(), "cgroup".to_owned()]
        } else {
            vec!["cage".to_owned()]
        },
    };
    at("writing process.json", record.write(&spec.directory))?;
    // The record is on disk before the VMM runs: the server after one that is killed now finds it there.
    at("reporting to the server", report(server, &Report::Ready(record)))?;
    let mut word = [0; GO.len()];
    if reader.read_exact(&mut word).is_err() || word != GO {
        return Err(CageError { step: "waiting for the server", error: io::Error::other("it went away") });
    }
    // If the child has failed meanwhile this fails too; the failure pipe tells why.
    let sent = go_end.write_all(EXECUTE);
    drop(go_end);
    let opens = if spec.read_only_opens.is_empty() {
        None
    } else {
        // Nothing comes if the child failed before; the failure pipe tells why.
        open_filter::receive(&filter.0, spec).ok()
    };
    // The pipe closes by itself when the program has started; otherwise it tells what failed.
    let mut text = String::new();
    at("watching it start", failure.read_to_string(&mut text))?;
    let (traced, text) = match text.strip_prefix(first_call::UNTRACED) {
        Some(rest) => (false, rest),
        None => (spec.write_tracking, &*text),
    };
    if let Some((step, detail)) = text.split_once('\n') {
        // Faults of what it is given, not of the cage.
        if let Some(step) = [folders::FOLDER_STEP, OPEN_STEP, LOCK_STEP].into_iter().find(|one| *one == step)
        {
            return Err(CageError { step, error: io::Error::other(detail) });
        }
        return Err(CageError { step: "starting it", error: io::Error::other(format!("{step}: {detail}")) });
    }
    at("letting it go", sent)?;
    if traced {
        at("preparing its memory", first_call::go_on_with_descriptor(pid))?;
    }
    guard.0 = None;
    Ok(Running { pid, console: File::from(console), messages: File::from(messages), opens })
}

fn await_word(go: &mut File, wanted: &[u8; 1]) -> Result<(), CageError> {
    let mut word = [0];
    at("waiting for the supervisor", go.read_exact(&mut word))?;
    if word == *wanted {
        Ok(())
    } else {
        at("waiting for the supervisor", Err(io::Error::other("it said nonsense")))
    }
}

/// Descriptors that the child writes to.
struct ChildEnds<'a> {
    messages: &'a OwnedFd,
    filter: &'a OwnedFd,
    failure: &'a mut File,
}

/// Everything the child does up to its exec; returns only what failed.
fn child(
    spec: &CageSpec,
    go: &mut File,
    inherited: &[(OwnedFd, RawFd)],
    ends: ChildEnds<'_>,
    folders: Vec<OwnedFd>,
) -> CageError {
    let mut folders = Some(folders);
    let mut build = || -> Result<(), CageError> {
        // Waits for its user mapping; end of file means that the supervisor is gone.
        await_word(go, BUILD)?;
        let files = cage::enter_file_system(spec, folders.take().unwrap_or_default())?;
        at("placing descriptors", cage::place_descriptor(ends.messages.as_raw_fd(), 2))?;
        for (descriptor, number) in inherited.iter().chain(&files.disks) {
            at("placing descriptors", cage::place_descriptor(descriptor.as_raw_fd(), *number))?;
        }
        cage::drop_rights(spec)?;
        if !spec.read_only_opens.is_empty() {
            at("filtering what it opens", open_filter::install(ends.filter, &files.opens))?;
        }
        if !spec.folders.is_empty() {
            // Modes of what is made there are the guest's business.
            nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            at("filtering what it does in folders", folder_filter::install())?;
        }
        // Its cgroups and the server's word.
        await_word(go, EXECUTE)?;
        if spec.write_tracking && first_call::stop_at_execution().is_err() {
            at("telling its supervisor", ends.failure.write_all(first_call::UNTRACED.as_bytes()))?;
        }
        // Last: what was done above needs calls that the filter refuses.
        at("filtering its system calls", call_filter::install(!spec.folders.is_empty()))
    };
    match build() {
        Ok(()) => CageError { step: "executing the program", error: cage::execute(spec) },
        Err(error) => error,
    }
}

/// Maps the cage's own user id to `user` outside (or to ours).
fn map_ids(pid: Pid, inside: u32, user: Option<u32>) -> io::Result<()> {
    let outside_user = user.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
    let outside_group = user.unwrap_or_else(|| nix::unistd::getegid().as_raw());
    if !nix::unistd::geteuid().is_root() {
        // Without this an unprivileged process may not write a group map (user_namespaces(7)).
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    }
    std::fs::write(format!("/proc/{pid}/uid_map"), format!("{inside} {outside_user} 1"))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), format!("{inside} {outside_group} 1"))
}

fn detach_standard_streams() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for number in 0..=2 {
        cage::place_descriptor(null.as_raw_fd(), number)?;
    }
    Ok(())
}

impl Running {
    /// Keeps console and messages until both are closed, then notes how the VMM ended.
    fn attend(mut self, spec: &CageSpec) -> io::Result<()> {
        // A terminal's or an operator's signal to the group is not for us: we end when the VMM does.
        for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
            #[allow(unsafe_code)]
            // SAFETY: ignoring a signal installs no handler code.
            unsafe { signal(ignored, SigHandler::SigIgn) }?;
        }
        let mut console_log = CappedLog::begin(spec.directory.join("console.log"), spec.console_cap)?;
        let mut message_log = CappedLog::begin(spec.directory.join("vmm.log"), VMM_LOG_CAP)?;
        let (mut console_open, mut messages_open) = (true, true);
        let mut buffer = [0; 4096];
        while console_open || messages_open {
            let wanted = [
                console_open.then(|| self.console.as_fd()),
                messages_open.then(|| self.messages.as_fd()),
                self.opens.as_ref().map(OpenFilter::as_fd),
            ];
            let mut polled: Vec<PollFd> = wanted
                .iter()
                .flatten()
                .map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN))
                .collect();
            poll(&mut polled, PollTimeout::NONE)?;
            let mut found = polled.iter().map(|entry| entry.revents().unwrap_or(PollFlags::empty()));
            let [console, messages, opens] =
                wanted.map(|one| one.and_then(|_| found.next()).unwrap_or(PollFlags::empty()));
            if !console.is_empty() {
                console_open = pump(&mut self.console, &mut console_log, &mut buffer);
            }
            if !messages.is_empty() {
                messages_open = pump(&mut self.messages, &mut message_log, &mut buffer);
            }
            if opens.contains(PollFlags::POLLIN) {
                if let Some(filter) = &self.opens {
                    filter.answer();
                }
            } else if !opens.is_empty() {
                self.opens = None;
            }
        }
        let exit = match waitpid(self.pid, None)? {
            WaitStatus::Exited(_, code) => ExitRecord { code: Some(code), signal: None },
            WaitStatus::Signaled(_, signal, _) => ExitRecord { code: None, signal: Some(signal as i32) },
            _ => ExitRecord { code: None, signal: None },
        };
        cgroup::remove(&spec.id);
        exit.write(&spec.directory)
    }
}

/// Moves what is there into the log; false at the end. A log that cannot be written (disk full) loses what comes, and
/// says how much, so that the VMM is never held up by it.
fn pump(source: &mut File, log: &mut CappedLog, buffer: &mut [u8]) -> bool {
    match source.read(buffer) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            log.write_or_tell(&buffer[..count]);
            true
        }
    }
}
