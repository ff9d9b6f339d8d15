//! The whole product for a user without any rights: VMMs live in user namespaces of their own.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{names, text};

/// Nobody's user and group id on Linux.
const NOBODY: &str = "65534";

struct Rootless {
    directory: tempfile::TempDir,
}

impl Rootless {
    /// `None`, with the reason on standard error, where something is missing.
    fn open() -> Option<Self> {
        let furnished = std::env::var_os("MICROVM_TEST_ROOT").map(PathBuf::from).filter(|path| path.exists());
        let agent = std::env::var_os("MICROVM_TEST_AGENT").map(PathBuf::from).filter(|path| path.exists());
        let (Some(furnished), Some(agent)) = (furnished, agent) else {
            eprintln!("SKIPPED: MICROVM_TEST_ROOT or MICROVM_TEST_AGENT does not name anything");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let copy = |from: &Path, to: &Path| {
            let copied = Command::new("cp")
                .args(["--recursive", "--sparse=always", "--preserve=mode,timestamps"])
                .args([from, to])
                .status();
            assert!(copied.unwrap().success(), "{from:?} could not be copied");
        };
        for part in ["images", "kernels"] {
            copy(&furnished.join(part), &root);
        }
        copy(&agent, &directory.path().join("microvm-agent"));
        copy(Path::new(env!("CARGO_BIN_EXE_microvm")), &directory.path().join("microvm"));
        let given = Command::new("chown")
            .args(["--recursive", &format!("{NOBODY}:{NOBODY}")])
            .arg(directory.path())
            .status();
        assert!(given.unwrap().success());
        Some(Self { directory })
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let here = self.directory.path();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "100", "setpriv", "--reuid", NOBODY, "--regid", NOBODY]);
        command.args(["--clear-groups", "--no-new-privs"]).arg(here.join("microvm")).args(arguments);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", here).stdin(Stdio::null());
        command.env("MICROVM_ROOT", here.join("root")).env("MICROVM_AGENT", here.join("microvm-agent"));
        command.output().unwrap()
    }

    fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all"]);
        support::end_server_on(&self.directory.path().join("root"));
    }
}

#[test]
fn a_user_without_rights_runs_forks_and_saves() {
    let Some(home) = Rootless::open() else { return };
    assert_eq!(home.must(&["run", "--", "sh", "-c", "id -u; cat /proc/sys/kernel/ostype"]), "0\nLinux\n");
    home.must(&["create", "--name", "dev"]);
    home.must(&["exec", "dev", "--", "sh", "-c", "echo kept > /root/file"]);
    let forked = home.must(&["fork", "dev", "-n", "2", "-o", "json", "--", "cat", "/root/file"]);
    let forked: serde_json::Value = serde_json::from_str(&forked).unwrap();
    for child in forked.as_array().unwrap() {
        assert_eq!(child["stdout"], "kept\n", "{child}");
    }
    // Where the kernel can, it notes what a guest writes for an ordinary user too.
    let offered = text(&home.run(&["doctor"]).stdout).contains("memory is copied before the pause");
    let log = fs::read_to_string(home.directory.path().join("root/server.log")).unwrap();
    let branched = log.lines().rfind(|line| line.contains("\"branched\"")).unwrap();
    assert!(branched.contains(" ahead: "), "{branched}");
    assert_eq!(offered, !branched.contains(" ahead: 0ns"), "{branched}");
    home.must(&["snapshot", "create", "dev", "--name", "saved"]);
    home.must(&["restore", "saved", "--name", "copy"]);
    assert_eq!(home.must(&["exec", "copy", "--", "sh", "-c", "cat /root/file; hostname"]), "kept\ncopy\n");
    home.must(&["rm", "--all"]);
    assert!(names(&home.directory.path().join("root/vms")).is_empty());
}

#[test]
fn a_user_without_rights_shares_folders_of_theirs() {
    let Some(home) = Rootless::open() else { return };
    let folder = home.directory.path().join("shared");
    let id = NOBODY.parse().ok();
    let make = |name: &str, owner, mode| {
        let path = folder.join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, owner, owner).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::create_dir(&folder).unwrap();
    make("own", id, 0o600);
    make("foreign", Some(0), 0o600);
    std::os::unix::fs::chown(&folder, id, id).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let share = |target: &str| format!("{}:{target}", folder.display());
    let (data, out) = (share("/data"), share("/out:rw"));
    home.must(&["create", "--name", "dev", "--kernel", "built", "--share", &data, "--share", &out]);
    let sh = |script: &str| home.run(&["exec", "dev", "--", "sh", "-c", script]);
    assert_eq!(
        home.must(&["exec", "dev", "--", "sh", "-c", "cat /data/own; stat -c :%u /data/own"]),
        "own:0\n"
    );
    for refused in ["cat /data/foreign", "touch /data/new", "cp /bin/true /out/s && chmod u+s /out/s"] {
        assert!(!sh(refused).status.success(), "`{refused}` worked");
    }
    home.must(&["exec", "dev", "--", "sh", "-c", "echo result > /out/file && chmod 640 /out/file"]);
    let file = fs::metadata(folder.join("file")).unwrap();
    assert_eq!((Some(file.uid()), file.mode() & 0o7777), (id, 0o640));
    assert_eq!(fs::metadata(folder.join("s")).unwrap().mode() & 0o6000, 0);
    home.must(&["rm", "--all"]);
    // What the user cannot reach the guest does not get.
    let refused = home.run(&["create", "--name", "no", "--share", "/root:/data:ro"]);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
}
