//! Linux: boot as PID 1, programs in control groups, files past the page cache, identity through the kernel's own files.
//!
//! ```text
//!   boot ─▶ find (virtio-serial port) ─▶ port ◀── core::link
//!   programs (exec) · filing (files) · guest (system): the traits of core::platform, implemented for `Linux`
//! ```

pub(crate) mod boot;
mod descriptor;
mod errors;
mod exec;
mod files;
mod filing;
pub(crate) mod find;
mod guest;
pub(crate) mod port;
mod programs;
pub(crate) mod system;

use std::sync::Arc;

use microvm_protocol::messages::{Firmware, PathStyle};

use self::exec::{ControlGroups, Reaper};
use self::system::entropy::EntropyPool;
use self::system::health::Sampler;
use crate::core::platform::{Facts, Platform};

/// Surroundings of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A guest: the whole machine is the agent's.
    Guest,
    /// A host with other programs, for tests: nothing of the system may be changed.
    Host,
}

/// Linux, as the core sees it.
pub(crate) struct Linux {
    place: Place,
    /// Only a score keeps the out-of-memory killer away from the agent, because it is not PID 1, which the kernel spares.
    shielded: bool,
    facts: Facts,
    entropy: EntropyPool,
    reaper: Reaper,
    control_groups: Arc<ControlGroups>,
    sampler: Sampler,
}

impl Linux {
    /// Prepares control groups and opens the devices that are needed later.
    pub(crate) fn new(place: Place) -> Self {
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot_ms = uptime.tv_sec.unsigned_abs() * 1000 + uptime.tv_nsec.unsigned_abs() / 1_000_000;
        Self {
            place,
            shielded: place == Place::Guest && !rustix::process::getpid().is_init(),
            facts: Facts {
                kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
                boot_ms,
                path_style: PathStyle::Posix,
                firmware: if std::path::Path::new("/sys/firmware/efi").exists() {
                    Firmware::Uefi
                } else {
                    Firmware::None
                },
            },
            entropy: EntropyPool::open(),
            reaper: Reaper::default(),
            control_groups: Arc::new(match place {
                Place::Guest => ControlGroups::prepare(),
                Place::Host => ControlGroups::none(),
            }),
            sampler: Sampler::default(),
        }
    }
}

impl Platform for Linux {}
