//! The virtio-serial port named `agent`.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};

use super::boot::{BootError, DEVICE_DEADLINE, DeviceEvents, failed};

/// Name the host gives the port.
const PORT_NAME: &str = "agent";

/// Waits for the port and opens it.
pub(crate) fn open_port() -> Result<OwnedFd, BootError> {
    let mut events = DeviceEvents::listen()?;
    let deadline = Instant::now() + DEVICE_DEADLINE;
    let device = events.wait_for(&format!("virtio-serial port named `{PORT_NAME}`"), deadline, || {
        for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = format!("/dev/{}", entry.file_name().to_string_lossy());
            // The kernel lists a port a little before its device node is there.
            if name.trim() == PORT_NAME && fs::metadata(&device).is_ok() {
                return Some(device);
            }
        }
        None
    })?;
    rustix::fs::open(&*device, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed(format!("open {device}")))
}
