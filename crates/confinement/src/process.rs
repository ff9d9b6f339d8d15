//! Telling processes apart for good, and watching and ending them without races.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::ownership::{self, Belongs};

/// A process, identified by number and start time: a number alone may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process number on the host.
    pub pid: i32,
    /// Start time in clock ticks since the host's boot (field 22 of `/proc/<pid>/stat`, proc(5)).
    pub start_ticks: u64,
}

impl ProcessIdentity {
    /// The identity of a living process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is in brackets and may hold anything; fields are counted after its end.
        let start_ticks = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("cannot read /proc/{pid}/stat"))
            })?;
        Ok(Self { pid, start_ticks })
    }

    /// Opens the process for watching and signalling; `None` if it has ended (a zombie counts as ended).
    ///
    /// # Errors
    /// If the kernel refuses for another reason than that.
    pub fn open(&self) -> io::Result<Option<ProcessDescriptor>> {
        let Some(descriptor) = pidfd_open(self.pid)? else {
            return Ok(None);
        };
        // Looked up after opening: the number now surely means the process that the descriptor holds.
        match Self::of(self.pid) {
            Ok(found) if found == *self => Ok(Some(ProcessDescriptor(descriptor))),
            _ => Ok(None),
        }
    }

    /// Kills the process if it lives and waits until it has ended.
    ///
    /// # Errors
    /// `TimedOut` if it still exists after `deadline`.
    pub async fn end(&self, deadline: Duration) -> io::Result<()> {
        let Some(process) = self.open()? else {
            return Ok(());
        };
        process.signal(libc::SIGKILL)?;
        tokio::time::timeout(deadline, process.ended()?).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not end", self.pid))
        })?
    }
}

/// A process held open: its number cannot be taken by another one meanwhile.
#[derive(Debug)]
pub struct ProcessDescriptor(OwnedFd);

impl ProcessDescriptor {
    /// Sends a signal; a process that has ended is fine.
    ///
    /// # Errors
    /// If it is not ours to signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// A future that resolves when the process has ended. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn ended(&self) -> io::Result<impl Future<Output = io::Result<()>> + Send + use<>> {
        let watched = watch(self.0.as_fd().try_clone_to_owned()?)?;
        // A pidfd becomes readable when the process ends (pidfd_open(2)).
        Ok(async move { watched.readable().await.map(|_| ()) })
    }
}

#[allow(unsafe_code)]
fn watch(descriptor: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the result, so that it stays open as long as it is registered.
    let watched = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(descriptor, tokio::io::Interest::READABLE)
    };
    watched.map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn pidfd_open(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1; nothing is shared.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

#[allow(unsafe_code)]
fn pidfd_send_signal(descriptor: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is valid for the call; a null siginfo is allowed (pidfd_send_signal(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            descriptor.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Which boot of the host this is.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Held by the supervisor of a VM directory as long as it lives: two never work in one directory.
pub(crate) struct SupervisorLock(
    #[expect(dead_code, reason = "the lock lives as long as the file is open")] std::fs::File,
);

impl SupervisorLock {
    /// Takes the lock, waiting for whoever has it.
    pub(crate) fn take(directory: &Utf8Path) -> io::Result<Self> {
        let path = directory.join("supervisor.lock");
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.lock()?;
        Ok(Self(file))
    }

    async fn wait(directory: &Utf8Path, deadline: Duration) -> io::Result<Self> {
        let owned = directory.to_owned();
        let taken = tokio::task::spawn_blocking(move || Self::take(&owned));
        match tokio::time::timeout(deadline, taken).await {
            Ok(taken) => taken.map_err(io::Error::other)?,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("a supervisor is at work in {directory}"),
            )),
        }
    }
}

/// What runs for a VM; `process.json` in its directory, written before the VMM starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Version of this file: 1.
    pub version: u32,
    /// Boot of the host it belongs to (`/proc/sys/kernel/random/boot_id`): after another boot the same numbers mean
    /// other processes.
    pub boot_id: String,
    /// The VMM, or the child that becomes it.
    pub vmm: ProcessIdentity,
    /// Its supervisor.
    pub supervisor: ProcessIdentity,
    /// Layers of confinement that are on around it.
    pub layers: Vec<String>,
}

/// How a VMM ended; `exit.json` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal that ended it, if one did.
    pub signal: Option<i32>,
}

/// File name of [`ProcessRecord`].
pub(crate) const PROCESS_FILE: &str = "process.json";
/// File name of [`ExitRecord`].
const EXIT_FILE: &str = "exit.json";

impl ProcessRecord {
    /// Reads the record of a VM directory; `None` if nothing was ever started there.
    ///
    /// # Errors
    /// If the file is there and cannot be read or understood.
    pub fn read(directory: &Utf8Path) -> io::Result<Option<Self>> {
        read_json(&directory.join(PROCESS_FILE))
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write(&self, directory: &Utf8Path) -> io::Result<()> {
        write_json(&directory.join(PROCESS_FILE), self)
    }

    /// Ends all that runs for a VM directory, and removes its cgroups: what its `process.json` names, what `known` names
    /// (a copy of that record kept elsewhere), and what is in its cgroups. Nothing there is fine. A process that can be
    /// seen to work for another directory is left alone. When this returns no supervisor is at work in the directory, not
    /// even one that had not come to its record.
    ///
    /// # Errors
    /// `TimedOut` if a process still exists after `deadline`; I/O errors of the record.
    pub async fn end_all(
        directory: &Utf8Path,
        id: &str,
        known: Option<&Self>,
        deadline: Duration,
    ) -> io::Result<()> {
        let exists = directory.exists();
        if exists {
            Self::end_recorded(directory, deadline).await?;
        }
        if let Some(known) = known {
            known.end_processes(directory, deadline).await?;
        }
        Self::end_in_cgroups(directory, id, deadline).await?;
        if exists {
            let lock = SupervisorLock::wait(directory, deadline).await?;
            // One that was held up may have come to its record while the lock was waited for.
            Self::end_recorded(directory, deadline).await?;
            drop(lock);
            Self::forget(directory)?;
        }
        crate::cgroup::remove(id);
        Ok(())
    }

    async fn end_recorded(directory: &Utf8Path, deadline: Duration) -> io::Result<()> {
        match Self::read(directory)? {
            Some(record) => record.end_processes(directory, deadline).await,
            None => Ok(()),
        }
    }

    async fn end_processes(&self, directory: &Utf8Path, deadline: Duration) -> io::Result<()> {
        if !self.is_of_this_boot() || self.belongs_elsewhere(directory) {
            return Ok(());
        }
        self.vmm.end(deadline).await?;
        // It ends by itself when the VMM has; it is ended here only if it hangs.
        if let Some(supervisor) = self.supervisor.open()?
            && tokio::time::timeout(Duration::from_secs(1), supervisor.ended()?).await.is_err()
        {
            self.supervisor.end(deadline).await?;
        }
        Ok(())
    }

    /// Whether the processes live and can be seen to work for another directory: that of the root that this one is a copy
    /// of.
    #[must_use]
    pub fn belongs_elsewhere(&self, directory: &Utf8Path) -> bool {
        let lives = |process: &ProcessIdentity| process.open().is_ok_and(|found| found.is_some());
        let living: Vec<i32> =
            [self.vmm, self.supervisor].iter().filter(|one| lives(one)).map(|one| one.pid).collect();
        let elsewhere = !living.is_empty() && ownership::of_any(&living, directory) == Belongs::Elsewhere;
        if elsewhere {
            tracing::warn!(%directory, pid = self.vmm.pid, "the machine that is recorded here works for another directory: it is left alone");
        }
        elsewhere
    }

    /// Ends what no record names, for example because `process.json` was removed.
    async fn end_in_cgroups(directory: &Utf8Path, id: &str, deadline: Duration) -> io::Result<()> {
        for pid in crate::cgroup::processes(id) {
            // It may have ended since.
            let Ok(identity) = ProcessIdentity::of(pid) else { continue };
            // A VMM that waits for its state shows nothing itself; its supervisor does.
            let family: Vec<i32> = std::iter::once(pid).chain(ownership::parent(pid)).collect();
            if ownership::of_any(&family, directory) == Belongs::Elsewhere {
                tracing::warn!(%directory, pid, "a process in the cgroup of this VM works for another directory: it is left alone");
                continue;
            }
            tracing::warn!(%directory, pid, "ending a process that only its cgroup knows");
            identity.end(deadline).await?;
        }
        Ok(())
    }

    /// Whether the host has not been booted again since; if it has, everything of it is gone.
    #[must_use]
    pub fn is_of_this_boot(&self) -> bool {
        boot_id().is_ok_and(|now| now == self.boot_id)
    }

    /// Forgets a record whose processes have ended.
    fn forget(directory: &Utf8Path) -> io::Result<()> {
        match std::fs::remove_file(directory.join(PROCESS_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl ExitRecord {
    /// Reads how the last VMM of a VM directory ended; `None` if it has not, or if nobody saw it.
    ///
    /// # Errors
    /// If the file is there and cannot be read or understood.
    pub fn read(directory: &Utf8Path) -> io::Result<Option<Self>> {
        read_json(&directory.join(EXIT_FILE))
    }

    pub(crate) fn write(&self, directory: &Utf8Path) -> io::Result<()> {
        write_json(&directory.join(EXIT_FILE), self)
    }

    pub(crate) fn forget(directory: &Utf8Path) -> io::Result<()> {
        match std::fs::remove_file(directory.join(EXIT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for ExitRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (_, Some(signal)) => write!(formatter, "killed by signal {signal}"),
            (Some(code), None) => write!(formatter, "exit code {code}"),
            (None, None) => formatter.write_str("unknown exit"),
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// These files matter only while the host runs (a machine does not outlive it): renamed into place, not synced.
fn write_json<T: Serialize>(path: &Utf8Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    std::fs::write(&temporary, serde_json::to_vec(value)?)?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_used_again_is_another_process() {
        let me = ProcessIdentity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.open().unwrap().is_some());
        let other = ProcessIdentity { start_ticks: me.start_ticks + 1, ..me };
        assert!(other.open().unwrap().is_none());
    }

    /// A root, and the directory of a VM in it, which has the same name in each.
    fn folder() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = camino::Utf8PathBuf::from_path_buf(folder.path().canonicalize().unwrap()).unwrap();
        let path = root.join("vms").join("06h1ob46jn1g2tj3878d");
        std::fs::create_dir_all(&path).unwrap();
        (folder, path)
    }

    fn worker(directory: &Utf8Path) -> (tokio::process::Child, ProcessRecord) {
        let child = tokio::process::Command::new("sleep")
            .arg("60")
            .current_dir(directory)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let vmm = ProcessIdentity::of(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let boot_id = boot_id().unwrap();
        (child, ProcessRecord { version: 1, boot_id, vmm, supervisor: vmm, layers: Vec::new() })
    }

    async fn expect_killed(mut child: tokio::process::Child) {
        use std::os::unix::process::ExitStatusExt as _;
        let status = tokio::time::timeout(Duration::from_secs(5), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn a_machine_of_the_root_that_this_one_was_copied_from_is_left_alone() {
        let ((_one, original), (_two, copy)) = (folder(), folder());
        let (child, record) = worker(&original);
        record.write(&original).unwrap();
        record.write(&copy).unwrap();
        assert!(record.belongs_elsewhere(&copy) && !record.belongs_elsewhere(&original));
        ProcessRecord::end_all(&copy, "of-a-copy", Some(&record), Duration::from_secs(5)).await.unwrap();
        assert!(record.vmm.open().unwrap().is_some(), "it ended what is not its own");
        ProcessRecord::end_all(&original, "of-a-copy", None, Duration::from_secs(5)).await.unwrap();
        expect_killed(child).await;
    }

    #[tokio::test]
    async fn a_machine_that_shows_no_directory_is_ended_by_its_record() {
        let (_folder, directory) = folder();
        // As a VMM that waits for its state, when its supervisor has been killed.
        let (child, record) = worker(Utf8Path::new("/"));
        record.write(&directory).unwrap();
        assert!(!record.belongs_elsewhere(&directory));
        ProcessRecord::end_all(&directory, "shows-nothing", None, Duration::from_secs(5)).await.unwrap();
        expect_killed(child).await;
    }

    #[tokio::test]
    async fn a_machine_without_its_record_is_ended_by_what_the_database_knows() {
        let (_folder, directory) = folder();
        let (child, record) = worker(&directory);
        ProcessRecord::end_all(&directory, "without-record", Some(&record), Duration::from_secs(5))
            .await
            .unwrap();
        expect_killed(child).await;
        // Nor does it need the directory.
        let (folder, directory) = self::folder();
        let (child, record) = worker(&directory);
        drop(folder);
        ProcessRecord::end_all(&directory, "without-record", Some(&record), Duration::from_secs(5))
            .await
            .unwrap();
        expect_killed(child).await;
    }

    #[tokio::test]
    async fn ends_a_process_and_sees_it_end() {
        let mut child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        identity.end(Duration::from_secs(10)).await.unwrap();
        child.wait().await.unwrap();
        assert!(identity.open().unwrap().is_none());
        identity.end(Duration::from_secs(1)).await.unwrap();
    }
}
