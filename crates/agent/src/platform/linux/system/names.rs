//! Host name, machine id and working directory of the guest.

use std::fs;
use std::path::Path;

use super::hosts;
use super::line::write_line;
use crate::core::console::say;

/// Sets the host name in the kernel, `/etc/hostname` and `/etc/hosts`; empty: nothing to do.
///
/// # Errors
/// If the kernel refuses or `/etc/hostname` cannot be written.
pub(in crate::platform::linux) fn set_host_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    // The kernel first: it is what programs ask for; the files are for the next start and for people.
    rustix::system::sethostname(name.as_bytes()).map_err(|error| format!("set the host name: {error}"))?;
    write_line("/etc/hostname", format!("{name}\n"))?;
    // The file may be the user's own work: a failure to change it does not fail the identity.
    if let Err(problem) = hosts::set_own_name(name) {
        say(&format!("the guest's own name does not resolve: {problem}"));
    }
    Ok(())
}

/// Writes the machine id; empty: nothing to do.
///
/// # Errors
/// If a file cannot be written.
pub(in crate::platform::linux) fn set_machine_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Ok(());
    }
    let line = format!("{id}\n");
    write_line("/etc/machine-id", &line)?;
    let bus = "/var/lib/dbus/machine-id";
    // Usually a link to the other one.
    if fs::symlink_metadata(bus).is_ok_and(|found| found.is_file()) {
        write_line(bus, &line)?;
    }
    Ok(())
}

/// Makes the image's working directory where the image lacks it, as OCI runtimes do. A failure shows in the first command
/// that runs in it.
pub(in crate::platform::linux) fn make_working_directory(directory: &str) {
    // One that is relative is below the root.
    let directory = Path::new("/").join(directory);
    if fs::metadata(&directory).is_err() {
        let _ = fs::create_dir_all(&directory);
    }
}
