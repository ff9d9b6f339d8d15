//! From the initial file system to the image's root, as PID 1.

mod base;
mod disks;
mod events;
mod limits;
mod modules;
mod mounts;
mod network;
mod root;

pub(super) use events::DeviceEvents;

use std::time::{Duration, Instant};

/// Failure to start the guest: said on the console, then the machine is ended so that the host sees it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// The action.
        action: String,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A device did not appear.
    #[error("no {what} appeared within {after:?}: does the machine have it, and the kernel its driver?")]
    Missing {
        /// The device, in words.
        what: String,
        /// Time waited.
        after: Duration,
    },
    /// A disk without a file system that can be mounted.
    #[error("{disk} holds neither EROFS nor ext4")]
    FileSystem {
        /// Path of the device.
        disk: String,
    },
}

/// `map_err` for system calls.
pub(crate) fn failed<E: Into<std::io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> BootError {
    move |error| BootError::System { action: action.into(), source: error.into() }
}

/// Time that devices are waited for: a loaded host may give an emulated guest little time.
pub(crate) const DEVICE_DEADLINE: Duration = Duration::from_secs(60);

/// Sets up the root. Returns the parameters of the kernel command line.
pub(crate) fn prepare() -> Result<Parameters, BootError> {
    mounts::early()?;
    let parameters = Parameters::read();
    // Before the modules, whose devices may appear at once.
    let mut events = DeviceEvents::listen()?;
    modules::load("/modules")?;
    let deadline = Instant::now() + DEVICE_DEADLINE;
    let image = disks::find("image", &mut events, deadline)?;
    let scratch = disks::find("scratch", &mut events, deadline)?;
    root::assemble(&image, &scratch)?;
    root::switch()?;
    base::complete()?;
    mounts::late()?;
    limits::raise();
    // An init of the image's has its own way with them.
    if parameters.init.is_none() {
        mounts::identity_in_memory();
    }
    // Twice a second the kernel would look whether memory wants to be put together. It still does so when it has to.
    let _ = std::fs::write("/proc/sys/vm/compaction_proactiveness", "0");
    network::raise_loopback();
    Ok(parameters)
}

/// The device of the scratch disk.
pub(crate) fn scratch_device() -> Option<String> {
    disks::device("scratch")
}

/// Waits for the disk with this serial number; the path of its device.
pub(super) fn find_disk(serial: &str, deadline: Instant) -> Result<String, BootError> {
    let mut events = DeviceEvents::listen()?;
    Ok(disks::find(serial, &mut events, deadline)?.device)
}

/// Parameters of the agent on the kernel command line.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    /// The image's own init, if it is to become PID 1.
    pub(crate) init: Option<String>,
}

impl Parameters {
    fn read() -> Self {
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let init = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("microvm.init="));
        Self { init: init.filter(|path| path.starts_with('/')).map(str::to_owned) }
    }
}
