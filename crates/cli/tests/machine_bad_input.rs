//! Input that cannot be: each gets a clear error with its own code, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::Command;

use support::Home;

#[test]
fn what_is_unknown_taken_or_impossible_is_refused() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev", "--no-start"]);
    let ids = home.ids();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--name", "dev"], 103, "vm_name_taken"),
        (&["--template", "nope"], 102, "template_not_found"),
        (&["--image", "nope"], 102, "image_not_found"),
        (&["--kernel", "nope"], 102, "kernel_not_found"),
        (&["--cpus", "0"], 101, ""),
        (&["--cpus", "1000"], 101, "over_limit"),
        (&["--memory", "0"], 101, ""),
        (&["--memory", "1MiB"], 101, ""),
        (&["--memory", "1000GiB"], 101, "over_limit"),
        (&["--disk", "0"], 101, ""),
        (&["--disk", "1000GiB"], 101, "over_limit"),
        (&["--network", "open"], 104, ""),
    ];
    for (arguments, code, name) in cases {
        let (exit, problem) = home.must_fail(&[&["create"], *arguments].concat());
        assert_eq!(exit, *code, "{arguments:?}: {problem}");
        assert!(problem["code"].as_str().is_some_and(|code| !code.is_empty()), "{problem}");
        if !name.is_empty() {
            assert_eq!(problem["code"], *name, "{arguments:?}");
        }
    }
    for malformed in [&["--name", "a b"][..], &["--name", ""], &["--cpus", "-1"], &["--memory", "lots"]] {
        let output = home.run(&[&["create"], malformed].concat());
        assert_eq!(output.status.code(), Some(2), "{malformed:?}");
    }
    for command in [&["rm", "nope"], &["start", "nope"], &["logs", "nope"]] {
        assert_eq!(home.must_fail(command).0, 102, "{command:?}");
    }
    assert_eq!(home.must_fail(&["exec", "nope", "true"]).0, 125);
    // A stopped VM runs nothing, and says what to do.
    let (exit, problem) = home.must_fail(&["exec", "dev", "--", "true"]);
    assert_eq!(exit, 125);
    assert_eq!(problem["remedies"][0]["action"], "start_vm", "{problem}");
    assert_eq!(home.ids(), ids);
    home.must(&["rm", "dev"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn a_damaged_image_is_never_booted() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "before"]);
    // The root may hold more images than the one that VMs are made of.
    let shown = home.json(&["inspect", "before"]);
    let digest = shown["image_digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let file = home.root().join("images").join(digest).join("root.erofs");
    home.must(&["rm", "before"]);
    let (kept, copy) = (home.root().join("kept"), home.root().join("copy"));
    fs::rename(&file, &kept).unwrap();
    type Damage = fn(&fs::File);
    let damages: [(&str, Damage); 2] = [
        ("one flipped bit", |image| {
            let (mut byte, middle) = ([0], image.metadata().unwrap().len() / 2);
            image.read_exact_at(&mut byte, middle).unwrap();
            image.write_all_at(&[byte[0] ^ 1], middle).unwrap();
        }),
        ("cut short", |image| image.set_len(image.metadata().unwrap().len() - 4096).unwrap()),
    ];
    for (what, damage) in damages {
        fs::copy(&kept, &copy).unwrap();
        fs::rename(&copy, &file).unwrap();
        // The good copy is found good first, so that the store has reason to trust it.
        home.must(&["create", "--name", "good"]);
        home.must(&["rm", "good"]);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        damage(&fs::OpenOptions::new().read(true).write(true).open(&file).unwrap());
        // Whoever damages it may also put the clock of the file back.
        let touched = Command::new("touch").arg("-r").arg(&kept).arg(&file).status().unwrap();
        assert!(touched.success());
        let (_, problem) = home.must_fail(&["create", "--name", "bad"]);
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("damaged") && detail.contains("build or import it again"),
            "{what}: {problem}"
        );
        let (_, problem) = home.must_fail(&["run", "--", "true"]);
        assert!(problem["detail"].as_str().unwrap().contains("damaged"), "{what}: {problem}");
    }
    assert!(home.states().is_empty());
    home.expect_nothing_left(&BTreeSet::new());
}

#[test]
fn a_host_without_a_usable_qemu_is_told_what_to_install() {
    let Some(mut home) = Home::open() else { return };
    home.set("MICROVM_QEMU", "/nonexistent/qemu");
    let (exit, problem) = home.must_fail(&["create", "--name", "a"]);
    assert_eq!(exit, 104, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("/nonexistent/qemu"), "{problem}");
    home.end_server();
    let old = home.root().join("old-qemu");
    fs::write(&old, "#!/bin/sh\necho 'QEMU emulator version 6.0.0'\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    home.set("MICROVM_QEMU", old.to_str().unwrap());
    let (exit, problem) = home.must_fail(&["create", "--name", "a"]);
    assert_eq!(exit, 104, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("6.0.0") && detail.contains("7.2"), "{detail}");
    home.end_server();
    // One that starts and says nothing we understand.
    fs::write(
        &old,
        "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version 7.2.0';; *) exit 3;; esac\n",
    )
    .unwrap();
    home.must_fail(&["create", "--name", "a"]);
    assert!(home.states().is_empty());
    home.expect_nothing_left(&BTreeSet::new());
}

#[test]
fn two_clients_delete_one_vm() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let ids = home.ids();
    let children: Vec<_> = (0..4).map(|_| home.command(&["rm", "dev"]).spawn().unwrap()).collect();
    let codes: Vec<_> = children.into_iter().map(|mut child| child.wait().unwrap().code().unwrap()).collect();
    assert!(codes.contains(&0), "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, 0 | 102)), "{codes:?}");
    home.expect_nothing_left(&ids);
}
