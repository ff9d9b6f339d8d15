//! File systems that are soon full.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::text;

/// A small file system in memory; gone when dropped.
pub(crate) struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    pub(crate) fn mount(at: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let option = format!("size={size},mode=0711");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(at).output().unwrap();
        if !mounted.status.success() {
            eprintln!("SKIPPED: no file system can be mounted here: {}", text(&mounted.stderr));
            return None;
        }
        Some(Self(at))
    }

    /// A small disk in a file beside it.
    pub(crate) fn disk(at: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let image = at.with_extension("img");
        let mut make = Command::new("sh");
        let script = "truncate -s \"$2\" \"$1\" && mkfs.ext4 -q -m 0 \"$1\" && mount -o loop \"$1\" \"$3\" && chmod 711 \"$3\"";
        let made = make.args(["-c", script, "sh"]).arg(&image).arg(size).arg(at).output().unwrap();
        if !made.status.success() {
            eprintln!("SKIPPED: no disk can be mounted here: {}", text(&made.stderr));
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}
