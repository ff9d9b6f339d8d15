//! Folders of the host in real guests: what is seen, what is kept away, and what the host finds afterwards.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use support::{Home, names};

/// A folder of the host that its owner alone may enter, and a secret beside it.
struct Folder {
    directory: tempfile::TempDir,
}

impl Folder {
    fn make(owner: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let folder = Self { directory };
        fs::create_dir(folder.path()).unwrap();
        fs::write(folder.path().join("own"), "of the host\n").unwrap();
        fs::set_permissions(folder.path().join("own"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(folder.directory.path().join("secret"), "secret\n").unwrap();
        symlink("../secret", folder.path().join("near")).unwrap();
        symlink("/etc/passwd", folder.path().join("far")).unwrap();
        for path in [folder.path(), folder.path().join("own")] {
            std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    /// A path that QEMU's option syntax would take apart.
    fn path(&self) -> PathBuf {
        self.directory.path().join("a,readonly=off b=c")
    }

    fn share(&self, target: &str) -> String {
        format!("{}:{target}", self.path().display())
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode()
}

#[test]
fn a_folder_is_read_and_written_as_its_owner_and_nothing_else_is() {
    let Some(home) = Home::open() else { return };
    let (owner, data) = (Folder::make(4_711), Folder::make(0));
    let (writable, read_only) = (owner.share("/mnt/out:rw"), data.share("/data"));
    home.must(&["create", "--name", "dev", "--kernel", "built", "--share", &writable, "--share", &read_only]);
    let sh = |script: &str| home.must(&["exec", "dev", "--", "sh", "-c", script]);
    let fails = |script: &str| {
        let output = home.run(&["exec", "dev", "--", "sh", "-c", script]);
        assert!(!output.status.success(), "`{script}` worked: {}", support::text(&output.stdout));
    };

    // Read-only: read, and not changed in any way.
    assert_eq!(sh("cat /data/own; stat -c '%u %g %a' /data/own"), "of the host\n0 0 600\n");
    for change in
        ["echo x > /data/own", "echo x > /data/new", "rm /data/own", "mkdir /data/d", "chmod 777 /data/own"]
    {
        fails(change);
        fails(&format!("mount -o remount,rw /data && {change}"));
    }
    // The guest's kernel may mount it as it likes; the host decides.
    let mount = "mount -t 9p -o trans=virtio,version=9p2000.L";
    sh(&format!(
        "umount /data && mkdir /other && {mount} share1 /other && grep -q ' /other .*rw,' /proc/mounts && \
         cat /other/own && ! touch /other/new && ! chmod 777 /other/own && ! rm /other/own && ! touch /other/own && \
         umount /other && {mount},ro share1 /data"
    ));
    assert_eq!(names(&data.path()), ["far", "near", "own"].map(str::to_owned).into());
    assert_eq!(fs::read_to_string(data.path().join("own")).unwrap(), "of the host\n");

    // Links lead where the guest takes them, never to the host's files.
    assert_eq!(sh("readlink /data/far /data/near"), "/etc/passwd\n../secret\n");
    fails("cat /data/near");
    assert_ne!(sh("cat /data/far"), fs::read_to_string("/etc/passwd").unwrap());
    fails("cat /data/../secret || cat /mnt/out/../secret");

    // Writable: what comes out belongs to the folder's owner, with the mode it was given.
    sh("cd /mnt/out && echo result > file && chmod 750 file && mkdir -p a/b && mv file a/b/ && ln -s b a/l && \
        ln a/b/file hard && cat own >> a/b/file && python3 -c 'import mmap
with open(\"map\", \"w+b\") as f:
    f.truncate(8192)
    m = mmap.mmap(f.fileno(), 0)
    m[4096:4100] = b\"page\"
    m.flush()'");
    let file = owner.path().join("a/b/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "result\nof the host\n");
    assert_eq!(mode(&file) & 0o7777, 0o750);
    assert_eq!(&fs::read(owner.path().join("map")).unwrap()[4096..4100], b"page");
    for path in ["a", "a/b", "a/b/file", "a/l", "map"] {
        let found = fs::symlink_metadata(owner.path().join(path)).unwrap();
        assert_eq!((found.uid(), found.gid()), (4_711, 4_711), "{path}");
    }
    // Times are what the guest sets, to the nanosecond: on files, directories and links.
    let times = "1700000000123456789, 1600000000987654321";
    sh(&format!(
        "cd /mnt/out && python3 -c 'import os
for path in [\"a/b/file\", \"a\", \"a/l\"]:
    os.utime(path, ns=({times}), follow_symlinks=False)
    found = os.lstat(path)
    assert (found.st_atime_ns, found.st_mtime_ns) == ({times}), (path, found)'"
    ));
    for path in ["a/b/file", "a", "a/l"] {
        let found = fs::symlink_metadata(owner.path().join(path)).unwrap();
        assert_eq!(
            (found.mtime(), found.mtime_nsec()),
            (1_600_000_000, 987_654_321),
            "{path}: a kernel built by an older version? Build it anew"
        );
    }
    // Both sides see at once what the other does.
    fs::write(&file, "new\n").unwrap();
    assert_eq!(sh("cat /mnt/out/a/b/file"), "new\n");

    // A hostile guest leaves nothing that gives rights to anybody.
    for attempt in [
        "cp /bin/true s && chmod u+s s",
        "cp /bin/true s2 && chmod 6755 s2",
        "install -m 4755 /bin/true s3",
        "mknod disk b 8 0",
        "mknod memory c 1 1",
        "mkfifo pipe",
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'",
        "python3 -c 'import os; os.open(\"s4\", os.O_CREAT | os.O_WRONLY, 0o4755)'",
        "python3 -c 'import os; os.mknod(\"s5\", 0o104755)'",
    ] {
        fails(&format!("cd /mnt/out && {attempt}"));
    }
    assert!(names(&owner.path()).contains("s"), "there was nothing to give the bit to");
    let _ = home.run(&[
        "exec",
        "dev",
        "--",
        "sh",
        "-c",
        "cd /mnt/out && cp /bin/true g; chmod g+s g; mkdir -m 2775 gd",
    ]);
    for name in names(&owner.path()) {
        let mode = mode(&owner.path().join(&name));
        let kind = mode & 0o170_000;
        assert_eq!(mode & 0o6000, 0, "{name} has mode {mode:o}");
        assert!([0o100_000, 0o040_000, 0o120_000].contains(&kind), "{name} has mode {mode:o}");
    }
    // In a folder that hands its group on, new folders can be made all the same, and hand it on too.
    let team = owner.path().join("team");
    fs::create_dir(&team).unwrap();
    std::os::unix::fs::chown(&team, Some(4_711), Some(4_711)).unwrap();
    fs::set_permissions(&team, fs::Permissions::from_mode(0o2775)).unwrap();
    sh("umask 002; mkdir /mnt/out/team/new && echo x > /mnt/out/team/new/file");
    assert_eq!(mode(&team.join("new")) & 0o7777, 0o2775);

    // What belongs to others stays closed.
    let foreign = owner.path().join("foreign");
    fs::write(&foreign, "of root\n").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o600)).unwrap();
    fails("cat /mnt/out/foreign");

    assert_eq!(home.json(&["inspect", "dev"])["share_changes"], "polling");
    assert_eq!(home.json(&["inspect", "dev"])["shares"][0]["target"], "/mnt/out");
    assert_eq!(home.json(&["inspect", "dev"])["shares"][1]["read_only"], true);
}

#[test]
fn a_vm_with_a_folder_is_not_branched_and_outlives_server_and_folder() {
    let Some(home) = Home::open() else { return };
    let folder = Folder::make(0);
    let share = folder.share("/data:rw");
    home.must(&["create", "--name", "dev", "--kernel", "built", "--share", &share]);
    for command in [
        &["fork", "dev", "-n", "2"][..],
        &["snapshot", "create", "dev", "--name", "no"],
        &["hibernate", "dev"],
    ] {
        let (exit, problem) = home.must_fail(command);
        assert_eq!(problem["code"], "share_not_branchable", "{command:?} {exit}: {problem}");
    }
    home.must(&["pause", "dev"]);
    home.must(&["resume", "dev"]);
    home.end_server();
    assert_eq!(home.must(&["exec", "dev", "--", "cat", "/data/own"]), "of the host\n");
    // Gone while it is shared: the guest is told, the VM goes on, and cannot start again without it.
    fs::remove_dir_all(folder.path()).unwrap();
    assert!(!home.run(&["exec", "dev", "--", "cat", "/data/own"]).status.success());
    assert_eq!(home.must(&["exec", "dev", "--", "echo", "alive"]), "alive\n");
    home.must(&["stop", "dev"]);
    let (_, problem) = home.must_fail(&["start", "dev"]);
    assert!(problem["detail"].as_str().unwrap().contains("no such folder"), "{problem}");
    fs::create_dir(folder.path()).unwrap();
    home.must(&["start", "dev"]);
    home.must(&["exec", "dev", "--", "sh", "-c", "echo again > /data/file"]);
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "again\n");
    home.must(&["rm", "--all"]);
}

#[test]
fn folders_that_cannot_be_shared_leave_nothing() {
    let Some(home) = Home::open() else { return };
    let folder = Folder::make(0);
    let root = home.root().to_str().unwrap();
    for (share, code) in [
        ("/nowhere/at/all:/data".to_owned(), "bad_input"),
        (format!("{}/own:/data", folder.path().display()), "bad_input"),
        ("/:/data".to_owned(), "bad_input"),
        ("/proc:/data".to_owned(), "bad_input"),
        (format!("{root}:/data"), "bad_input"),
        (format!("{root}/vms:/data"), "bad_input"),
    ] {
        let (_, problem) = home.must_fail(&["create", "--name", "bad", "--share", &share]);
        assert_eq!(problem["code"], code, "{share}: {problem}");
    }
    for share in [folder.share("data"), folder.share("/"), folder.share("/proc/x"), "x".to_owned()] {
        assert!(!home.run(&["create", "--name", "bad", "--share", &share]).status.success(), "{share}");
    }
    let (_, problem) = home.must_fail(&[
        "create",
        "--name",
        "bad",
        "--kernel",
        "distribution",
        "--share",
        &folder.share("/data"),
    ]);
    assert_eq!(problem["code"], "kernel_without_shares");
    assert!(home.ids().is_empty(), "{:?}", home.ids());
    assert!(home.states().is_empty());
}
