//! Permissions of what comes out of a guest: the guest proposes, the umask of whoever copies decides.

use rustix::fs::Mode;

/// Permission bits of a new file or directory whose original in the guest has `mode`: never set-id or sticky bits, nothing the umask forbids.
pub(crate) fn of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777 & !umask())
}

/// The umask of this process, which only `/proc` tells without changing it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Where it is not told (Linux before 4.7) the result is for the owner alone.
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o077)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn the_umask_has_the_last_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made");
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o777).open(&path).unwrap();
        let kernel = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(of(0o7777).as_raw_mode(), kernel);
        assert_eq!(of(0o6400).as_raw_mode(), 0o400);
    }
}
