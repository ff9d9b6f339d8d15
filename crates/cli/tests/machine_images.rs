//! Images built by commands: nothing of what the commands left is lost on the way.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;

use support::Home;

/// Makes one of everything in the guest.
const MAKE: &str = r#"
import os, socket
w = lambda p, d, m=0o644: (open(p, 'wb').write(d), os.chmod(p, m))
os.makedirs('/opt/a/empty'); os.chdir('/opt/a')
w('capped', b'x', 0o4755); os.chown('capped', 70000, 3000000000); os.chmod('capped', 0o4755)
os.setxattr('capped', 'security.capability', bytes([1, 0, 0, 2, 0, 32] + [0] * 14))
os.setxattr('/usr/bin/yes', 'user.x', b'v')
os.setxattr('/opt/a/empty', 'system.posix_acl_default', bytes.fromhex('02000000' '01000700ffffffff' '02000400d2040000' '04000500ffffffff' '10000500ffffffff' '20000000ffffffff'))
os.mkfifo('pipe'); os.mknod('null', 0o020666, os.makedev(1, 3)); os.mknod('disk', 0o060600, os.makedev(259, 70000))
w(b'new\nline', b'1'); w(b'not \xff utf-8', b'2')
w('first', b'3'); os.link('first', 'second'); os.link('/usr/bin/env', 'env')
os.symlink('/no/where', 'dangling'); os.link('dangling', 'dangling too', follow_symlinks=False)
f = open('sparse', 'wb'); f.truncate(64 << 20); f.seek(40 << 20); f.write(b'data'); f.close()
socket.socket(socket.AF_UNIX).bind('socket')
os.makedirs('/tmp/kept'); w('/tmp/kept/file', b'4', 0o600); os.chmod('/tmp', 0o1777)
w('old', b'5'); os.utime('old', ns=(1, -86400 * 10**9 + 5)); os.utime('first', ns=(1, 1234567890123456789))
os.utime('/opt/a/empty', ns=(1, 987654321987654321))
"#;

/// Every entry of the disks, one in a line. What the VM itself has there, as its name, is not compared.
const LIST: &str = r#"
import os, stat, hashlib
root = os.lstat('/').st_dev; first = {}; links = {}
own = {'/etc/hosts', '/etc/hostname', '/etc/machine-id', '/var/lib/dbus/machine-id'}
for top, directories, files in os.walk(b'/'):
    directories[:] = sorted(d for d in directories if os.path.islink(os.path.join(top, d)) or os.lstat(os.path.join(top, d)).st_dev == root)
    for name in sorted(directories + files) + ([b''] if top == b'/' else []):
        p = os.path.join(top, name); s = os.lstat(p); shown = p.decode('latin1')
        if shown in own: continue
        x = {n: os.getxattr(p, n, follow_symlinks=False).hex() for n in os.listxattr(p, follow_symlinks=False)}
        c = ''
        if stat.S_ISREG(s.st_mode): c = hashlib.sha256(open(p, 'rb').read()).hexdigest()[:16]
        if stat.S_ISLNK(s.st_mode): c = os.readlink(p)
        d = stat.S_ISDIR(s.st_mode)
        same = '' if d or s.st_nlink < 2 else first.setdefault((s.st_dev, s.st_ino), shown)
        dev = (os.major(s.st_rdev), os.minor(s.st_rdev)) if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode) else 0
        # The agent writes into these two.
        when = 0 if shown in ('/etc', '/') else s.st_mtime_ns
        print(repr((shown, oct(s.st_mode), s.st_uid, s.st_gid, 0 if d else (s.st_size, s.st_nlink), when, dev, same, x, c)))
"#;

fn build(home: &Home, name: &str, from: &str, commands: &[&str]) {
    let recipe = serde_json::json!({ "name": name, "from": from, "commands": commands });
    let path = home.root().join("recipe.json");
    fs::write(&path, recipe.to_string()).unwrap();
    home.must(&["image", "build", "-f", path.to_str().unwrap()]);
}

// `-B`: what is listed is not changed by what lists it.
fn list(home: &Home, image: &str) -> Vec<String> {
    let printed = home.must(&["run", "--image", image, "--", "python3", "-B", "-c", LIST]);
    printed.lines().map(str::to_owned).collect()
}

#[test]
fn a_built_image_has_all_that_its_commands_left() {
    let Some(home) = Home::open() else { return };
    let make = format!("cat > /root/make.py <<'END'\n{MAKE}\nEND\npython3 /root/make.py");
    build(&home, "made", "debian-python", &[&make]);
    // A command that does nothing changes nothing.
    build(&home, "same", "made", &["true"]);
    let (made, same) = (list(&home, "made"), list(&home, "same"));
    for (one, other) in made.iter().zip(&same) {
        assert_eq!(one, other);
    }
    assert_eq!(made.len(), same.len());
    eprintln!("{} entries compared", made.len());
    let of = |path: &str| {
        let start = format!("('{path}', ");
        let found = made.iter().find(|line| line.starts_with(&start));
        found.unwrap_or_else(|| panic!("{path} is lost")).as_str()
    };
    for (path, parts) in [
        ("/opt/a/capped", &["'0o104755', 70000, 3000000000", "security.capability"][..]),
        ("/usr/bin/yes", &["'user.x': '76'"]),
        ("/opt/a/empty", &["987654321987654321", "posix_acl_default"]),
        ("/opt/a/pipe", &["'0o10644'"]),
        ("/opt/a/null", &["'0o20644'", "(1, 3)"]),
        ("/opt/a/disk", &["(259, 70000)"]),
        (r"/opt/a/new\nline", &["(1, 1)"]),
        ("/opt/a/not \u{ff} utf-8", &["(1, 1)"]),
        ("/opt/a/first", &["1234567890123456789", "(1, 2)"]),
        ("/opt/a/second", &["'/opt/a/first'"]),
        ("/opt/a/env", &["'/opt/a/env'"]),
        ("/usr/bin/env", &["'/opt/a/env'"]),
        ("/opt/a/dangling too", &["'/opt/a/dangling'", "/no/where"]),
        ("/opt/a/sparse", &["67108864"]),
        ("/opt/a/old", &["-86399999999995"]),
        ("/tmp", &["'0o41777'"]),
        ("/tmp/kept/file", &["'0o100600'"]),
    ] {
        for part in parts {
            assert!(of(path).contains(part), "{part} is lost: {}", of(path));
        }
    }
    assert!(!made.iter().any(|line| line.starts_with("('/opt/a/socket'")), "a socket is in the image");
    // Its archive makes the same image, every byte of it.
    let archive = home.root().join("made.tar");
    let archive = archive.to_str().unwrap();
    home.must(&["image", "export", "made", "-o", archive]);
    home.must(&["image", "import", archive, "--name", "back"]);
    let digest = |name: &str| home.json(&["image", "inspect", name])["digest"].clone();
    assert_eq!(digest("back"), digest("made"));
}

/// Changes of every kind that overlayfs has a form of its own for, and a process that goes on writing two files in turn.
const CHANGE: &str = "\
rm /usr/bin/yes; mv /usr/share/bash-completion /usr/share/renamed; rm -r /usr/share/python3; mkdir /usr/share/python3; \
echo 1 > /usr/share/python3/new; ln /usr/bin/env /root/env; chmod 700 /usr/bin/env; \
(i=0; while :; do i=$((i+1)); echo $i >> /root/a; echo $i >> /root/b; done) > /dev/null 2>&1 < /dev/null &";

#[test]
fn a_commit_of_a_vm_that_writes_is_of_one_moment() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "writer", "--image", "debian-python"]);
    home.must(&["exec", "writer", "--", "sh", "-c", CHANGE]);
    home.must(&["commit", "writer", "committed", "--change", "WORKDIR /usr"]);
    let diff = home.must(&["diff", "writer"]);
    for line in [
        "D /usr/bin/yes",
        "D /usr/share/bash-completion",
        "A /usr/share/renamed",
        "C /usr/share/python3",
        "A /usr/share/python3/new",
        "A /root/env",
        "C /usr/bin/env",
        "A /root/a",
        "C /root",
    ] {
        assert!(diff.lines().any(|found| found == line), "{line} is not among:\n{diff}");
    }
    assert!(!diff.contains("/usr/bin/true"), "{diff}");
    // All files, of one moment too: they become an image like any other.
    let tar = home.root().join("writer.tar");
    let tar = tar.to_str().unwrap();
    home.must(&["export", "writer", "-o", tar]);
    home.must(&["image", "import", tar, "--name", "exported"]);
    let look = "pwd; cmp /usr/bin/env /root/env && stat -c '%a %h' /root/env; ls /usr/bin/yes /usr/share/bash-completion 2>&1 | wc -l; \
                ls /usr/share/renamed | wc -l; ls /usr/share/python3; tail -qn1 /root/a /root/b";
    let of_export = home.must(&["run", "--image", "exported", "--", "sh", "-c", &format!("cd /usr; {look}")]);
    let lines: Vec<&str> = of_export.lines().collect();
    assert_eq!(lines[..3], ["/usr", "700 2", "2"], "{of_export}");
    let (a, b): (u64, u64) = (lines[5].parse().unwrap(), lines[6].parse().unwrap());
    assert!(a >= 1 && (a == b || a == b + 1), "two moments: {a} and {b}");
    let found = home.must(&["run", "--image", "committed", "--", "sh", "-c", look]);
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines[..3], ["/usr", "700 2", "2"], "{found}");
    assert!(lines[3].parse::<u32>().unwrap() > 0, "a renamed directory is empty: {found}");
    assert_eq!(lines[4], "new", "{found}");
    let (a, b): (u64, u64) = (lines[5].parse().unwrap(), lines[6].parse().unwrap());
    assert!(a >= 1 && (a == b || a == b + 1), "two moments: {a} and {b}");
    // The VM runs on, and so does what writes in it.
    let last =
        || home.must(&["exec", "writer", "--", "tail", "-n1", "/root/b"]).trim().parse::<u64>().unwrap();
    let before = last();
    assert!(before >= b && last() > before, "nothing is written any more");
    home.must(&["rm", "-f", "writer"]);
}
