//! The VM: its root, a folder of this host, and a disk with a plain ext4.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Kind;
use crate::{microvm, run};

/// One VM and one template of ours on this host.
const NAME: &str = "file-system-suites";
/// Longest time for one suite on one file system: guests may be emulated.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// What `pjdfstest` is to try, and as whom.
const PJDFSTEST: &str = "\
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
stat_st_birthtime = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]
";

/// What `fsx` does, and how often.
const FSX: &str = "\
flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 10
fsync = 1
fdatasync = 1
posix_fallocate = 0
punch_hole = 0
sendfile = 1
posix_fadvise = 1
copy_file_range = 1
";

/// Makes the users that the suites change to, mounts the disk and makes the directories that the suites fill.
const PREPARE: &str = "\
set -e
getent group tests >/dev/null || groupadd tests
getent passwd tests >/dev/null || useradd -g tests tests
mkdir -p /ext4 /second
for disk in /sys/block/vd*; do
  [ \"$(cat $disk/serial 2>/dev/null)\" != data ] || mount -t ext4 /dev/${disk##*/} /ext4
done
grep -q ' /ext4 ext4 ' /proc/mounts
mount -t tmpfs second /second
for directory in \"$@\"; do mkdir $directory; chmod 755 $directory; done
";

/// A VM that is deleted with this.
pub(super) struct Guest;

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = run::run(&mut call(60, &["rm", "--force", NAME]));
        let _ = run::run(&mut call(60, &["template", "rm", NAME]));
    }
}

fn call(seconds: u64, arguments: &[&str]) -> Command {
    microvm::call(Duration::from_secs(seconds), arguments)
}

impl Guest {
    pub(super) fn boot(folder: &Path, programs: &[PathBuf]) -> Result<Self> {
        let (disk, shared) = (folder.join("disk.raw"), folder.join("shared"));
        for path in [&disk, &shared] {
            let gone = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            // What is not there need not be removed.
            drop(gone);
        }
        std::fs::create_dir(&shared).context("making the folder to be shared")?;
        let mut make = run::program("mke2fs", Duration::from_secs(60));
        run::run(make.args(["-q", "-t", "ext4"]).arg(&disk).arg("1G"))?;
        let template = serde_json::json!({
            "image": microvm::IMAGE, "memory_mib": 512, "vcpus": 1,
            "extra_disks": [{ "name": "data", "path": disk }],
        });
        let file = folder.join(format!("{NAME}.json"));
        std::fs::write(&file, template.to_string())?;
        let _ = run::succeeds(&mut call(60, &["template", "rm", NAME]));
        run::run(&mut call(60, &["template", "add", &file.to_string_lossy()]))?;
        let share = format!("{}:/share:rw", shared.display());
        let create = ["create", "--name", NAME, "--template", NAME, "--kernel", microvm::BUILT_KERNEL];
        let guest = Self;
        run::run(&mut call(300, &[&create[..], &["--share", &share]].concat()))?;
        for (name, text) in [("pjdfstest.toml", PJDFSTEST), ("fsx.toml", FSX)] {
            std::fs::write(folder.join(name), text)?;
            guest.copy(&folder.join(name), &format!("/root/{name}"))?;
        }
        for program in programs {
            let name = program.file_name().context("a program has no name")?.to_string_lossy();
            guest.copy(program, &format!("/usr/local/bin/{name}"))?;
        }
        let directories = Kind::ALL.map(Kind::directory);
        let prepare = [&["exec", NAME, "--", "sh", "-c", PREPARE, "sh"], &directories[..]].concat();
        run::run(&mut call(60, &prepare))?;
        Ok(guest)
    }

    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        run::run(&mut call(60, &["cp", &from.to_string_lossy(), &format!("{NAME}:{to}")]))
    }

    /// All that a command says, and whether it ended well.
    fn exec(&self, script: &str) -> Result<(bool, String)> {
        let mut command = microvm::call(PATIENCE, &["exec", NAME, "--", "sh", "-c", script]);
        let output = command.output().with_context(|| format!("running `{script}` in the VM"))?;
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// What `pjdfstest` prints.
    pub(super) fn pjdfstest(&self, kind: Kind) -> Result<String> {
        let directory = kind.directory();
        let script = format!(
            "cd / && NO_COLOR=1 pjdfstest -c /root/pjdfstest.toml -p {directory} -s /second 2>/dev/null"
        );
        Ok(self.exec(&script)?.1)
    }

    /// Whether `fsx` found nothing wrong, and what it prints.
    pub(super) fn fsx(&self, kind: Kind, seed: u32, operations: u32) -> Result<(bool, String)> {
        let directory = kind.directory();
        self.exec(&format!(
            "cd {directory} && fsx -q -f /root/fsx.toml -S {seed} -N {operations} {directory}/fsx-{seed} 2>&1"
        ))
    }
}
