//! File systems that are soon full.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Home, text};

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

/// A root with images and kernels on a small disk of its own, which all commands of `home` use from now on.
pub(crate) fn furnished<'a>(home: &mut Home, whole: &'a Path, spare_mib: u64) -> Option<Small<'a>> {
    let parts = ["images", "kernels"].map(|part| home.root().join(part));
    let used =
        Command::new("du").args(["--summarize", "--total", "--block-size=1M"]).args(&parts).output().unwrap();
    let used: u64 = text(&used.stdout).lines().last().unwrap().split('\t').next().unwrap().parse().unwrap();
    // A disk, not memory: holes of files in memory take room when they are read.
    let small = Small::disk(whole, &format!("{}M", used + spare_mib))?;
    let copied = Command::new("cp").args(["--recursive", "--sparse=always"]).args(&parts).arg(whole).status();
    assert!(copied.unwrap().success());
    home.set("MICROVM_ROOT", whole.to_str().unwrap());
    Some(small)
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}
