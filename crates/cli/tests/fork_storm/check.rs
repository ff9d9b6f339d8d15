//! Conditions checked after each round.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

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
        let vms = home.json(&["ls"]);
        vms["vms"].as_array().unwrap().iter().all(|vm| vm["labels"].get("microvm.golden").is_none())
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

/// Time after which remains of removed things are gone: the collector works in the background, and rests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Remains found after a round that belong to nothing, and since when. Waiting for the collector in each round would be
/// most of its time; what leaks stays, and is told in a later round.
#[derive(Default)]
pub(crate) struct Litter(BTreeMap<String, Instant>);

impl Litter {
    /// Nothing is for long on disk, in memory or mounted that belongs to nothing.
    pub(crate) fn look(&mut self, home: &Home) {
        until("the directories of VMs are those of VMs", 20, || directories_fit(home));
        let now = Instant::now();
        let before = std::mem::take(&mut self.0);
        let since = |what: String| {
            let since = before.get(&what).copied().unwrap_or(now);
            (what, since)
        };
        self.0 = left(home).into_iter().map(since).collect();
        let old: Vec<&String> =
            self.0.iter().filter(|(_, since)| since.elapsed() > PATIENCE).map(|(what, _)| what).collect();
        assert!(old.is_empty(), "left behind: {old:#?}");
    }

    /// Nothing at all is left, once the collector has come by.
    pub(crate) fn expect_none(home: &Home) {
        until("the directories of VMs are those of VMs", 20, || directories_fit(home));
        let end = Instant::now() + PATIENCE;
        loop {
            let left = left(home);
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Every VM that is listed has a directory, those that wait in pools, and VMMs that wait for a child, one for a VM at most;
/// nobody else.
fn directories_fit(home: &Home) -> bool {
    let pools = home.json(&["pool", "ls"]);
    let waiting: u64 =
        pools["pools"].as_array().unwrap().iter().map(|pool| pool["waiting"].as_u64().unwrap()).sum();
    let (listed, there) = (listed(home), home.ids());
    let vms = home.root().join("vms");
    let reserved = |id: &&String| {
        let directory = vms.join(id);
        directory.join("reserved").exists() && !directory.join("disk.json").exists()
    };
    let children = there.iter().filter(reserved).count();
    let fit = listed.is_subset(&there)
        && children <= listed.len()
        && (there.len() - listed.len() - children) as u64 == waiting;
    if !fit {
        eprintln!("  VM directories {there:?}, listed {listed:?}, {waiting} wait");
    }
    fit
}

fn left(home: &Home) -> Vec<String> {
    let mut left = unnamed(home.root());
    let work = names(&home.root().join("tmp"));
    left.extend(work.into_iter().filter(|name| name != ".gate").map(|name| format!("tmp/{name}")));
    left.extend(nameless(home, &home.ids()));
    left
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
