//! A server that may open no more files takes no living process for one that has ended. In a program of its own: the limit
//! is the whole process's.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::time::Duration;

use camino::Utf8Path;
use microvm_confinement::{ProcessIdentity, ProcessRecord};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Opens files until only `left` more can be opened.
fn leave(left: u64) -> Vec<File> {
    let null = || File::open("/dev/null");
    let highest = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&null().unwrap())).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, highest + left + 64, hard).unwrap();
    let mut held: Vec<File> = std::iter::from_fn(|| null().ok()).collect();
    held.truncate(held.len() - usize::try_from(left).unwrap());
    held
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_not_gone() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Utf8Path::from_path(folder.path()).unwrap();
    let mut sleeper = tokio::process::Command::new("sleep")
        .arg("60")
        .current_dir(directory)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let vmm = ProcessIdentity::of(i32::try_from(sleeper.id().unwrap()).unwrap()).unwrap();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let record = ProcessRecord { version: 1, boot_id, vmm, supervisor: vmm, layers: Vec::new() };
    let path = directory.join("process.json");
    std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    assert!(record.vmm_lives().unwrap());

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for left in [0, 1] {
        let held = leave(left);
        assert!(vmm.open().is_err(), "with {left} descriptors left");
        assert!(record.vmm_lives().is_err(), "with {left} descriptors left");
        let ended = ProcessRecord::end_all(directory, "few", None, Duration::from_secs(5)).await;
        assert!(ended.is_err(), "with {left} descriptors left");
        drop(held);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(path.exists(), "the record of a living process was forgotten");
        assert!(sleeper.try_wait().unwrap().is_none());
    }
    ProcessRecord::end_all(directory, "few", None, Duration::from_secs(5)).await.unwrap();
    assert!(!sleeper.wait().await.unwrap().success());
    assert!(!path.exists());
}
