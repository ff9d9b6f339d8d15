//! What must be so after each round.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::shared_files::unnamed;
use crate::support::{Home, names, text, until};

/// Ids of the VMs that are somebody's.
pub(crate) fn listed(home: &Home) -> BTreeSet<String> {
    home.json(&["ls"])["vms"].as_array().unwrap().iter().map(super::id_of).collect()
}

/// The VMs that are listed are those that somebody knows.
pub(crate) fn vms(home: &Home, expected: &BTreeSet<String>) {
    // The machine of a golden snapshot is nobody's; it is removed when its maker has died.
    until("no machine of a golden snapshot is left", 30, || {
        home.states().iter().all(|(name, _)| !name.starts_with("golden-"))
    });
    let there: BTreeSet<String> = home.states().into_iter().map(|(name, _)| name).collect();
    assert_eq!(there, *expected, "VMs nobody knows, or VMs lost");
}

/// Every snapshot, golden ones too, is whole.
pub(crate) fn snapshots(home: &Home) {
    let verified = home.run(&["snapshot", "verify"]);
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
    let listed = home.json(&["snapshot", "ls", "--golden"]);
    let listed: BTreeSet<String> = listed["snapshots"].as_array().unwrap().iter().map(super::id_of).collect();
    assert_eq!(names(&home.root().join("snapshots")), listed, "directories of snapshots and what is listed");
}

/// The pool is full again.
pub(crate) fn pool(home: &Home, waiting: u64) {
    let mut shown = String::new();
    until("the pool is full", 60, || {
        let pool = home.json(&["pool", "show", "pool"]);
        let now = pool.to_string();
        if now != shown {
            eprintln!("  {now}");
            shown = now;
        }
        pool["waiting"] == waiting && pool["filling"] == 0
    });
}

/// Nothing is on disk, in memory or mounted that belongs to nothing.
pub(crate) fn files(home: &Home) {
    let mut left = Vec::new();
    let look = |left: &mut Vec<String>| {
        left.clear();
        let pools = home.json(&["pool", "ls"]);
        let waiting: u64 =
            pools["pools"].as_array().unwrap().iter().map(|pool| pool["waiting"].as_u64().unwrap()).sum();
        let listed = self::listed(home);
        let there = home.ids();
        if !listed.is_subset(&there) || (there.len() - listed.len()) as u64 != waiting {
            left.push(format!("VM directories {there:?}, listed {listed:?}, {waiting} wait"));
        }
        left.extend(unnamed(home.root()));
        let work = names(&home.root().join("tmp"));
        left.extend(work.into_iter().filter(|name| name != ".gate").map(|name| format!("tmp/{name}")));
        left.extend(nameless(home, &there));
        left.is_empty()
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    // The collector works in the background.
    while !look(&mut left) && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

/// Processes that work in directories of VMs that are gone, and files that somebody keeps open after their removal.
fn nameless(home: &Home, there: &BTreeSet<String>) -> Vec<String> {
    let vms = home.root().join("vms");
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok()) {
        let Ok(folder) = fs::read_link(format!("/proc/{pid}/cwd")) else { continue };
        let Ok(inside) = folder.strip_prefix(&vms) else { continue };
        let id = inside.components().next().map(|id| id.as_os_str().to_string_lossy().into_owned());
        if id.is_some_and(|id| !there.contains(&id)) {
            found.push(format!("process {pid} in {}", folder.display()));
        }
    }
    found
}

/// Removes every snapshot, children first.
pub(crate) fn remove_all_snapshots(home: &Home) {
    loop {
        let listed = home.json(&["snapshot", "ls", "--golden"]);
        let Some(first) = listed["snapshots"].as_array().unwrap().first().map(super::id_of) else { break };
        home.must(&["snapshot", "rm", "--cascade", &first]);
    }
}
