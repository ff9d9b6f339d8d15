//! Random file operations on every file system of a guest, compared with the same operations on a memory file system of its
//! kernel; and what is left of them, through transfers and as the host sees it.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use support::Home;

const SCRIPT: &str = include_str!("guest/file_operations.py");
const DIFFERENCES: &str = include_str!("guest/share_differences.py");
const SEEDS: [u32; 3] = [1, 2, 3];
const COUNT: u32 = 1500;

/// Runs the script in the guest.
struct Guest<'a>(&'a Home);

impl Guest<'_> {
    fn python(&self, arguments: &[&str]) -> String {
        self.0.must(&[&["exec", "dev", "--", "python3"], arguments].concat())
    }

    fn operate(&self, below: &str, seed: u32, careful: bool) -> String {
        let word = if careful { "careful" } else { "" };
        self.python(&["/root/operations.py", below, &seed.to_string(), &COUNT.to_string(), word])
    }

    fn describe(&self, below: &str) -> String {
        self.python(&["/root/operations.py", below, "0", "0"])
    }
}

/// The script on the host, if it has a Python.
fn describe_here(script: &Path, below: &Path) -> Option<String> {
    let ended = Command::new("python3").arg(script).arg(below).args(["0", "0"]).output().ok()?;
    assert!(ended.status.success(), "{}", support::text(&ended.stderr));
    Some(support::text(&ended.stdout))
}

/// Modes as a copy on the host has them: without set-id and sticky bits.
fn plain_modes(text: &str) -> String {
    text.replace(" 0o41", " 0o40")
}

/// Fails with the first lines that differ.
fn expect_same(what: &str, found: &str, wanted: &str) {
    let differs = found.lines().zip(wanted.lines()).filter(|(found, wanted)| found != wanted);
    let differs: Vec<_> =
        differs.take(5).map(|(found, wanted)| format!("{found}\n  not: {wanted}")).collect();
    assert!(differs.is_empty() && found.len() == wanted.len(), "{what}:\n{}", differs.join("\n"));
}

#[test]
fn every_file_system_of_a_guest_does_the_same() {
    let Some(home) = Home::open() else { return };
    // Folders of the server are not shared.
    let shared = tempfile::tempdir().unwrap();
    let folder = shared.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let script = home.root().join("operations.py");
    fs::write(&script, SCRIPT).unwrap();
    fs::write(home.root().join("differences.py"), DIFFERENCES).unwrap();
    let share = format!("{}:/share:rw", folder.display());
    home.must(&["create", "--name", "dev", "--kernel", "built", "--share", &share]);
    for name in ["operations.py", "differences.py"] {
        home.must(&["cp", home.root().join(name).to_str().unwrap(), &format!("dev:/root/{name}")]);
    }
    let guest = Guest(&home);
    let mut wrong = Vec::new();
    for seed in SEEDS {
        for (top, careful) in [("/root", false), ("/share", true)] {
            let wanted = guest.operate(&format!("/dev/shm/{careful}-{seed}"), seed, careful);
            assert!(wanted.split_once("\neverything:\n").unwrap().1.lines().count() > 5, "{wanted}");
            let begun = std::time::Instant::now();
            let found = guest.operate(&format!("{top}/{seed}"), seed, careful);
            eprintln!("{COUNT} operations on {top}: {:?}", begun.elapsed());
            let same = std::panic::catch_unwind(|| expect_same(top, &found, &wanted));
            wrong.extend(same.err().map(|_| format!("{top}, seed {seed}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    what_they_do_otherwise(&guest);
    copies_are_what_was_copied(&guest, &script);
    for seed in SEEDS {
        let there = guest.describe(&format!("/share/{seed}"));
        if let Some(here) = describe_here(&script, &folder.join(seed.to_string())) {
            expect_same("the folder as the host sees it", &here, &there);
        }
    }
    home.must(&["rm", "dev"]);
}

/// The lists in `docs/concepts/file-systems.md`.
fn what_they_do_otherwise(guest: &Guest<'_>) {
    let lines = |top: &str| guest.python(&["/root/differences.py", &format!("{top}/differences")]);
    let usual = lines("/dev/shm");
    let unlike = |top: &str| -> Vec<(String, String)> {
        let found = lines(top);
        let pairs = usual.lines().zip(found.lines()).filter(|(usual, found)| usual != found);
        pairs.map(|(usual, found)| (usual.to_owned(), found.split_once(": ").unwrap().1.to_owned())).collect()
    };
    let owned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(usual, found)| ((*usual).to_owned(), (*found).to_owned())).collect()
    };
    assert_eq!(unlike("/root"), owned(&[("make an unnamed file: None", "ENOTSUP")]));
    let share = [
        ("write to a file without the owner's w: None", "EACCES"),
        ("look into a directory without the owner's x: 10", "EACCES"),
        ("look at a removed file: 10", "ENOENT"),
        ("truncate a removed file: None", "ENOENT"),
        ("change the mode of a removed file: None", "ENOENT"),
        ("truncate an open file that was made read-only: None", "EACCES"),
        ("its size then: 5", "10"),
        ("the size of what replaced it: 10", "5"),
        ("make an unnamed file: None", "ENOTSUP"),
        ("make a FIFO: None", "EPERM"),
        ("find data in a hole: ENXIO", "0"),
    ];
    assert_eq!(unlike("/share"), owned(&share));
}

/// Out of the guest, as a directory and as a stream, and back into it.
fn copies_are_what_was_copied(guest: &Guest<'_>, script: &Path) {
    let home = guest.0;
    guest.python(&[
        "-c",
        "import os
with open('/root/1/in/in/in/sparse', 'wb') as f:
    for place in (0, 1 << 20, 40 << 20):
        f.seek(place)
        f.write(b'data' * 1024)
    f.truncate(64 << 20)
with open('/root/1/in/in/in/many', 'wb') as f:
    for place in range(0, 8 << 20, 8192):
        f.seek(place)
        f.write(b'x' * 4096)
os.link('/root/1/in/in/in/many', '/root/1/in/in/in/other name')
os.symlink('/etc/passwd', '/root/1/in/in/in/outside')
os.mkfifo('/root/1/in/in/in/pipe', 0o640)",
    ]);
    for seed in SEEDS {
        let (there, back) = (format!("dev:/root/{seed}"), home.root().join(format!("back-{seed}")));
        let wanted = guest.describe(&format!("/root/{seed}"));
        home.must(&["cp", &there, back.to_str().unwrap()]);
        home.must(&["cp", back.to_str().unwrap(), &format!("dev:/root/again-{seed}")]);
        let again = guest.describe(&format!("/root/again-{seed}"));
        expect_same("to the guest again", &again, &plain_modes(&wanted));
        let streamed = home.root().join("streamed");
        fs::create_dir(&streamed).unwrap();
        let mut pull = home.command(&["cp", &there, "-"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-xp", "-C"]).arg(&streamed).stdin(pull.stdout.take().unwrap());
        assert!(tar.status().unwrap().success() && pull.wait().unwrap().success());
        let (Some(out), Some(tarred)) =
            (describe_here(script, &back), describe_here(script, &streamed.join(seed.to_string())))
        else {
            eprintln!("SKIPPED: this host has no python3 to look at the folders with");
            return;
        };
        expect_same("copied out", &out, &plain_modes(&wanted));
        // A stream is for every program: holes travel as zeros.
        let without_extents = |text: &str| -> String {
            let sparse = |line: &&str| {
                !["./sparse ", "./many ", "./other name "].iter().any(|name| line.starts_with(name))
            };
            text.lines().filter(sparse).collect::<Vec<_>>().join("\n")
        };
        expect_same("as a stream", &without_extents(&tarred), &without_extents(&wanted));
        fs::remove_dir_all(&streamed).unwrap();
    }
}
