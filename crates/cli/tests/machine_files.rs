//! Files of any number, size and name, both ways; and disks that are full.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use support::small_disk::{Small, furnished};
use support::{Home, text};

fn expect_same(one: &Path, other: &Path) {
    let compared =
        Command::new("diff").args(["-r", "--no-dereference"]).arg(one).arg(other).output().unwrap();
    assert!(compared.status.success(), "{}", text(&compared.stdout));
}

#[test]
fn ten_thousand_small_files() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let (source, back) = (home.root().join("source"), home.root().join("back"));
    for folder in 0..100 {
        let folder = source.join(folder.to_string());
        fs::create_dir_all(&folder).unwrap();
        for number in 0..100 {
            fs::write(folder.join(format!("file-{number}")), format!("{folder:?} {number}")).unwrap();
        }
    }
    let begun = std::time::Instant::now();
    home.must(&["cp", source.to_str().unwrap(), "dev:/root/files"]);
    let pushed = begun.elapsed();
    let count = home.must(&["exec", "dev", "--", "sh", "-c", "find /root/files -type f | wc -l"]);
    assert_eq!(count.trim(), "10000");
    let begun = std::time::Instant::now();
    home.must(&["cp", "dev:/root/files", back.to_str().unwrap()]);
    eprintln!("10,000 files: pushed in {pushed:?}, pulled in {:?}", begun.elapsed());
    expect_same(&source, &back);
    home.must(&["rm", "dev"]);
}

#[test]
fn a_sparse_file_of_4_gib_stays_sparse() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let (source, back) = (home.root().join("sparse"), home.root().join("back"));
    let file = fs::File::create(&source).unwrap();
    file.set_len(4 << 30).unwrap();
    for offset in [0, 1 << 30, (3 << 30) + 12_345, (4 << 30) - 5] {
        file.write_all_at(b"here!", offset).unwrap();
    }
    let begun = std::time::Instant::now();
    home.must(&["cp", source.to_str().unwrap(), "dev:/root/sparse"]);
    let pushed = begun.elapsed();
    let there = home.must(&["exec", "dev", "--", "stat", "-c", "%s %b", "/root/sparse"]);
    let (size, blocks) = there.trim().split_once(' ').unwrap();
    assert_eq!(size, (4_u64 << 30).to_string());
    assert!(blocks.parse::<u64>().unwrap() < 20_000, "{blocks} blocks in the guest");
    let begun = std::time::Instant::now();
    home.must(&["cp", "dev:/root/sparse", back.to_str().unwrap()]);
    eprintln!("4 GiB with holes: pushed in {pushed:?}, pulled in {:?}", begun.elapsed());
    let metadata = fs::metadata(&back).unwrap();
    assert_eq!(metadata.len(), 4 << 30);
    assert!(metadata.blocks() < 20_000, "{} blocks here", metadata.blocks());
    assert!(Command::new("cmp").arg(&source).arg(&back).status().unwrap().success());
    sparse_tree(&home, &source);
    home.must(&["rm", "dev"]);
}

/// A directory with that file and one of many holes, both ways: content by hash, and bytes on the disk.
fn sparse_tree(home: &Home, sparse: &Path) {
    let (tree, back) = (home.root().join("tree"), home.root().join("tree-back"));
    fs::create_dir(&tree).unwrap();
    fs::rename(sparse, tree.join("sparse")).unwrap();
    let file = fs::File::create(tree.join("many")).unwrap();
    file.set_len((16 << 20) + 777).unwrap();
    for offset in (0..16 << 20).step_by(100_003) {
        file.write_all_at(format!("data at {offset}").as_bytes(), offset).unwrap();
    }
    let begun = std::time::Instant::now();
    home.must(&["cp", tree.to_str().unwrap(), "dev:/root/tree"]);
    let pushed = begun.elapsed();
    let sum =
        |path: &Path| text(&Command::new("sha256sum").arg(path).output().unwrap().stdout)[..64].to_owned();
    let there = home.must(&["exec", "dev", "--", "sha256sum", "/root/tree/many"]);
    assert_eq!(there[..64], sum(&tree.join("many")));
    let begun = std::time::Instant::now();
    home.must(&["cp", "dev:/root/tree", back.to_str().unwrap()]);
    eprintln!("a directory of holes: pushed in {pushed:?}, pulled in {:?}", begun.elapsed());
    assert_eq!(sum(&back.join("many")), sum(&tree.join("many")));
    assert!(
        Command::new("cmp").arg(tree.join("sparse")).arg(back.join("sparse")).status().unwrap().success()
    );
    for name in ["sparse", "many"] {
        let there = home.must(&["exec", "dev", "--", "stat", "-c", "%s %b", &format!("/root/tree/{name}")]);
        let (here, again) = (fs::metadata(tree.join(name)).unwrap(), fs::metadata(back.join(name)).unwrap());
        let (size, blocks) = there.trim().split_once(' ').unwrap();
        assert_eq!((size, again.len()), (here.len().to_string().as_str(), here.len()), "{name}");
        // A file system may keep a few blocks for its own records of where the data is.
        for blocks in [blocks.parse().unwrap(), again.blocks()] {
            assert!(blocks <= here.blocks() + 64, "{name}: {blocks} blocks of {}", here.blocks());
        }
    }
}

#[test]
fn names_of_every_kind() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let (source, back) = (home.root().join("source"), home.root().join("back"));
    fs::create_dir(&source).unwrap();
    let long = "l".repeat(255);
    let names: [&[u8]; 9] = [
        b"with space",
        b"new\nline",
        b"not \xff\xfe utf-8",
        b"-rf",
        "\u{1f980} \u{4e2d}".as_bytes(),
        b"quote'\"\\",
        b"colon:name",
        b" ",
        long.as_bytes(),
    ];
    for name in names {
        fs::write(source.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir(source.join(OsStr::from_bytes(b"folder \xff\n"))).unwrap();
    std::os::unix::fs::symlink("with space", source.join("link")).unwrap();
    std::os::unix::fs::symlink("nowhere at all", source.join("dangling")).unwrap();
    home.must(&["cp", source.to_str().unwrap(), "dev:/root/names"]);
    home.must(&["cp", "dev:/root/names", back.to_str().unwrap()]);
    expect_same(&source, &back);
    // One by one, too.
    for (number, name) in names.iter().enumerate() {
        let mut remote = b"dev:/root/single/".to_vec();
        remote.extend_from_slice(name);
        home.must(&["exec", "dev", "--", "mkdir", "-p", "/root/single"]);
        let local = source.join(OsStr::from_bytes(name));
        let target = home.root().join(format!("single-{number}"));
        let push = home.command(&["cp"]).arg(&local).arg(OsStr::from_bytes(&remote)).output().unwrap();
        assert!(push.status.success(), "{local:?}: {}", text(&push.stderr));
        let pull = home.command(&["cp"]).arg(OsStr::from_bytes(&remote)).arg(&target).output().unwrap();
        assert!(pull.status.success(), "{local:?}: {}", text(&pull.stderr));
        assert_eq!(fs::read(target).unwrap(), *name);
    }
    home.must(&["rm", "dev"]);
}

#[test]
fn a_full_disk_is_told_and_nothing_half_stays() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    home.must(&["exec", "dev", "--", "sh", "-c", "head -c 20000000 /dev/urandom > /root/big"]);
    let target = home.root().join("small");
    {
        let Some(_small) = Small::mount(&target, "4m") else { return };
        let (exit, problem) = home.must_fail(&["cp", "dev:/root/big", target.join("big").to_str().unwrap()]);
        assert_eq!(exit, 105, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("space"), "{problem}");
        assert!(support::names(&target).is_empty(), "{:?}", support::names(&target));
        let (exit, problem) = home.must_fail(&["cp", "dev:/root", target.join("root").to_str().unwrap()]);
        assert_eq!(exit, 105, "{problem}");
    }
    home.must(&["rm", "dev"]);
    home.end_server();
    let vms = home.root().join("vms");
    let Some(small) = Small::mount(&vms, "64k") else { return };
    let (exit, problem) = home.must_fail(&["create", "--name", "full"]);
    assert_eq!(exit, 105, "{problem}");
    assert!(home.states().is_empty());
    assert!(home.ids().is_empty());
    drop(small);
    home.must(&["create", "--name", "roomy"]);
    home.must(&["rm", "roomy"]);
    home.expect_nothing_left(&BTreeSet::new());
}

#[test]
fn a_host_disk_that_fills_up_stops_the_guest_until_there_is_room() {
    let Some(mut home) = Home::open() else { return };
    let whole = home.root().join("whole");
    let Some(small) = furnished(&mut home, &whole, 200) else { return };
    home.must(&["create", "--name", "dev"]);
    let ids = support::names(&whole.join("vms"));
    let fill = "dd if=/dev/urandom of=/root/big bs=1M count=300 conv=fsync";
    home.must(&["exec", "-d", "dev", "--", "sh", "-c", fill]);
    // The guest stands still instead of losing its file system to errors, and says why.
    support::until("it waits for room", 60, || home.json(&["inspect", "dev"])["rest"]["kind"] == "disk_full");
    assert_eq!(home.state("dev").0, "paused");
    let (_, problem) = home.must_fail(&["exec", "dev", "--", "echo", "alive"]);
    assert!(problem["detail"].as_str().unwrap().contains("full"), "{problem}");
    // Neither a fork nor a snapshot is made of it half, and it can be removed, which makes room again.
    let (exit, problem) = home.must_fail(&["snapshot", "create", "dev", "--name", "half"]);
    assert_eq!(exit, 105, "{problem}");
    assert_eq!(home.json(&["snapshot", "ls"])["snapshots"].as_array().unwrap().len(), 0);
    home.must(&["rm", "dev"]);
    support::until("there is room again", 20, || home.run(&["run", "--", "true"]).status.success());
    support::end_server_on(&whole);
    drop(small);
    home.expect_nothing_left(&ids);
}
