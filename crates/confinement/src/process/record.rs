//! Records of the processes of a VM directory, kept in it; and ending all of them.

use std::io;
use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::identity::{ProcessIdentity, boot_id, is_gone};
use super::ownership::{self, Belongs};

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

/// Processes of a VM; `process.json` in its directory, written before the VMM starts.
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

/// Exit of a VMM; `exit.json` in its directory.
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
    /// (a copy of that record kept elsewhere), and what is in its cgroups; if `process.json` cannot be read, also what is
    /// marked as working for the directory. Nothing there is fine. A process that can be
    /// seen to work for another directory is left alone. When this returns no supervisor is at work in the directory, not
    /// even one that had not come to its record.
    ///
    /// # Errors
    /// `TimedOut` if a process still exists after `deadline`; I/O errors. All ways are tried before the first error is
    /// returned, and the record stays.
    pub async fn end_all(
        directory: &Utf8Path,
        id: &str,
        known: Option<&Self>,
        deadline: Duration,
    ) -> io::Result<()> {
        let exists = directory.exists();
        let mut outcome = Ok(());
        if exists {
            outcome = outcome.and(Self::end_recorded(directory, deadline).await);
        }
        if let Some(known) = known {
            outcome = outcome.and(known.end_processes(directory, deadline).await);
        }
        // Only now: what one way cannot end another may.
        outcome.and(Self::end_in_cgroups(directory, id, deadline).await)?;
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
        match Self::read(directory) {
            Ok(Some(record)) => record.end_processes(directory, deadline).await,
            Ok(None) => Ok(()),
            // Written by another version, or cut short by the end of the host: it names nobody.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%directory, %error, "the record of a process cannot be understood: what is marked with its directory is ended");
                super::stray::end_marked(directory, deadline).await
            }
            Err(error) => Err(error),
        }
    }

    async fn end_processes(&self, directory: &Utf8Path, deadline: Duration) -> io::Result<()> {
        if !self.is_of_this_boot()? || self.belongs_elsewhere(directory)? {
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

    /// True if the processes live and can be seen to work for another directory: that of the root that this one is a copy
    /// of.
    ///
    /// # Errors
    /// If it cannot be told whether they live.
    pub fn belongs_elsewhere(&self, directory: &Utf8Path) -> io::Result<bool> {
        let mut living = Vec::new();
        for process in [self.vmm, self.supervisor] {
            if process.lives()? {
                living.push(process.pid);
            }
        }
        let elsewhere = !living.is_empty() && ownership::of_any(&living, directory) == Belongs::Elsewhere;
        if elsewhere {
            tracing::warn!(%directory, pid = self.vmm.pid, "the machine that is recorded here works for another directory: it is left alone");
        }
        Ok(elsewhere)
    }

    /// Ends what no record names, for example because `process.json` was removed.
    async fn end_in_cgroups(directory: &Utf8Path, id: &str, deadline: Duration) -> io::Result<()> {
        for pid in crate::cgroup::processes(id)? {
            let identity = match ProcessIdentity::of(pid) {
                Ok(identity) => identity,
                // It has ended since.
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
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

    /// True if the host has not been booted since; after a boot every process of the record is gone.
    ///
    /// # Errors
    /// If the kernel does not say which boot this is.
    pub fn is_of_this_boot(&self) -> io::Result<bool> {
        Ok(boot_id()? == self.boot_id)
    }

    /// True if its VMM lives.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn vmm_lives(&self) -> io::Result<bool> {
        Ok(self.is_of_this_boot()? && self.vmm.lives()?)
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
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            value.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }
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
        assert!(record.belongs_elsewhere(&copy).unwrap() && !record.belongs_elsewhere(&original).unwrap());
        ProcessRecord::end_all(&copy, "of-a-copy", Some(&record), Duration::from_secs(5)).await.unwrap();
        assert!(record.vmm.open().unwrap().is_some(), "it ended what is not its own");
        ProcessRecord::end_all(&original, "of-a-copy", None, Duration::from_secs(5)).await.unwrap();
        expect_killed(child).await;
    }

    #[tokio::test]
    async fn a_machine_whose_root_was_moved_to_another_disk_is_ended_by_its_record() {
        let ((gone, original), (_two, copy)) = (folder(), folder());
        let (child, record) = worker(&original);
        record.write(&copy).unwrap();
        // As `cp -a` and `rm -r` do it, or `mv` between file systems.
        drop(gone);
        assert!(!record.belongs_elsewhere(&copy).unwrap(), "there is no other root any more");
        ProcessRecord::end_all(&copy, "of-a-moved-root", None, Duration::from_secs(5)).await.unwrap();
        expect_killed(child).await;
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_understood_does_not_hide_what_is_known_otherwise() {
        for text in ["", "{\"version\":2}"] {
            let (_folder, directory) = folder();
            let (child, record) = worker(&directory);
            std::fs::write(directory.join(PROCESS_FILE), text).unwrap();
            ProcessRecord::end_all(&directory, "not-understood", Some(&record), Duration::from_secs(5))
                .await
                .unwrap();
            expect_killed(child).await;
            assert!(!directory.join(PROCESS_FILE).exists());
        }
    }

    #[tokio::test]
    async fn a_machine_whose_record_cannot_be_understood_is_found_by_its_mark() {
        let (_folder, directory) = folder();
        let mark = crate::process::stray::mark(&directory).unwrap();
        let child = tokio::process::Command::new("sleep")
            .arg("60")
            .current_dir("/")
            .env(crate::process::stray::MARK, mark)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        std::fs::write(directory.join(PROCESS_FILE), "").unwrap();
        ProcessRecord::end_all(&directory, "by-its-mark", None, Duration::from_secs(5)).await.unwrap();
        expect_killed(child).await;
    }

    #[tokio::test]
    async fn a_machine_that_shows_no_directory_is_ended_by_its_record() {
        let (_folder, directory) = folder();
        // As a VMM that waits for its state, when its supervisor has been killed.
        let (child, record) = worker(Utf8Path::new("/"));
        record.write(&directory).unwrap();
        assert!(!record.belongs_elsewhere(&directory).unwrap());
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
}
