//! Small things that tests of several drivers need: a clock that stands still, a small disk, programs of the host.

use std::path::Path;
use std::process::{Command, Stdio};

use camino::Utf8Path;
use microvm_ports::Clock;

/// A clock that stands still and draws only sevens, so that equal work gives equal files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frozen;

impl Clock for Frozen {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

/// A small file system that is gone with the test.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// A tmpfs of this size (for example `80m`); needs root.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    pub fn mount(size: &str) -> Self {
        Self::mount_as("tmpfs", size)
    }

    /// A file system of a kind that lives in memory; needs root.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test that cannot go on fails")]
    pub fn mount_as(kind: &str, size: &str) -> Self {
        let point = tempfile::tempdir().expect("a temporary directory can be made");
        let status = Command::new("mount")
            .args(["-t", kind, "-o", &format!("size={size}"), kind])
            .arg(point.path())
            .status()
            .expect("mount(8) can be started");
        assert!(status.success(), "{kind} of {size} is mounted");
        Self(point)
    }

    /// Its mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing can be done about a mount that stays: the directory below it does, too.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// True if this test runs as root; says that it is skipped if not.
#[must_use]
#[expect(clippy::print_stdout, reason = "a skip must be seen")]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    root
}

/// True if all of these programs are there; says which one is missing if not.
#[must_use]
#[expect(clippy::print_stdout, reason = "a skip must be seen")]
pub fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let found = Command::new("sh")
            .args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}")])
            .stdout(Stdio::null())
            .status();
        !found.is_ok_and(|status| status.success())
    });
    if let Some(program) = missing {
        println!("SKIP: `{program}` is not installed");
    }
    missing.is_none()
}

/// Names of work in progress below the root of a store.
///
/// # Panics
/// If the directory of that work cannot be read.
#[must_use]
#[expect(clippy::expect_used, reason = "a test that cannot go on fails")]
pub fn work_in_progress(root: &Utf8Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("tmp")).expect("the directory of work is there");
    let names = entries.map(|entry| entry.expect("its entries can be read").file_name());
    // The gate is a lock that stays.
    names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name != ".gate").collect()
}
