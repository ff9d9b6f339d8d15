//! Public file-system suites (the crates `pjdfstest` and `fsx`) in a guest: on its root, on a folder of the host, and on a plain
//! ext4, which is what the others are held against.
//!
//! What fails is compared with `explained.txt`, where each failure has its reason. One that is not there, and one that is
//! there and does not happen any more, make the command fail.

mod explained;
mod guest;
mod results;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::explained::Explained;
use self::guest::Guest;
use self::results::Results;
use crate::packages::{Consent, Purpose};
use crate::steps::step;
use crate::{host, microvm, packages, run};

/// The suites, in the versions that the list was made with.
const CRATES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];
/// Both programs link nothing of the guest's.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Random operations of one run of `fsx`, and the runs: one for each seed.
const OPERATIONS: u32 = 2000;
const SEEDS: std::ops::Range<u32> = 1..4;

/// A file system of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ext4,
    Root,
    Share,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Ext4, Self::Root, Self::Share];

    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Root => "root",
            Self::Share => "share",
        }
    }

    /// The directory that the suites may fill.
    fn directory(self) -> &'static str {
        match self {
            Self::Ext4 => "/ext4/suite",
            Self::Root => "/suite",
            Self::Share => "/share/suite",
        }
    }
}

/// Builds the suites, boots a VM, runs them on every file system, and compares.
pub(crate) fn suites(consent: Consent) -> Result<()> {
    step("installing packages", || packages::install(Purpose::Tests, consent))?;
    let folder = host::target().join("suites");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let programs = step("building the suites", || build(&folder))?;
    step("providing the kernel that mounts shared folders", microvm::provide_built_kernel)?;
    step("providing the image", microvm::provide_image)?;
    let explained = Explained::read()?;
    let guest = step("booting a VM with all three", || Guest::boot(&folder, &programs))?;
    let mut wrong = Vec::new();
    let mut skipped_on_ext4 = None;
    for kind in Kind::ALL {
        let mut results = step(kind.name(), || on(&guest, kind))?;
        results.fail_skipped(skipped_on_ext4.get_or_insert_with(|| results.skipped.clone()));
        let unlike = explained.compare(kind.name(), &results);
        println!(
            "{}: {} passed, {} failed, {} skipped",
            kind.name(),
            results.passed,
            results.failed.len(),
            results.skipped.len()
        );
        std::fs::write(folder.join(format!("{}.txt", kind.name())), &results.text)?;
        unlike.iter().for_each(|line| println!("  {line}"));
        wrong.extend(unlike);
    }
    drop(guest);
    if wrong.is_empty() {
        println!("{} differences, all explained", explained.count());
        return Ok(());
    }
    bail!("{} results are not what explained.txt says; all output is in {}", wrong.len(), folder.display())
}

/// Both programs, without any library of this host.
fn build(folder: &Path) -> Result<Vec<PathBuf>> {
    let programs: Vec<_> = CRATES.iter().map(|(name, _)| folder.join("bin").join(name)).collect();
    for (name, version) in CRATES {
        let mut cargo = run::cargo(Duration::from_secs(15 * 60));
        cargo.args(["install", "--locked", "--target", TRIPLE, "--root"]).arg(folder);
        cargo.arg("--target-dir").arg(folder.join("target")).arg(format!("{name}@{version}"));
        run::run(cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    }
    Ok(programs)
}

fn on(guest: &Guest, kind: Kind) -> Result<Results> {
    let mut results = Results::of_pjdfstest(&guest.pjdfstest(kind)?)?;
    for seed in SEEDS {
        let (ended_well, text) = guest.fsx(kind, seed, OPERATIONS)?;
        results.add(&format!("fsx::seed_{seed}"), ended_well, &text);
    }
    Ok(results)
}
