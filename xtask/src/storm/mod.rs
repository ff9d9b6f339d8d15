//! Programs that nobody here wrote, in a VM that is forked again and again: each child must be right by their own checks.

mod workloads;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use workloads::{SERVER, WORKLOADS, Workload};

use crate::packages::{Consent, Purpose};
use crate::steps::step;
use crate::{host, microvm, packages, run};

/// Name of the image, made when it is missing.
const IMAGE: &str = "storm-programs";
/// Its recipe: programs of Debian's.
const RECIPE: &str = "\
name: storm-programs
suite: bookworm
packages: [python3, mariadb-server, gcc, libc6-dev, nodejs, ca-certificates, postgresql, git]
";
/// From one fork to the next.
const EVERY: Duration = Duration::from_secs(10);
/// Children that are checked at once; a fork that finds so many waits for none, and its child is not checked.
const CHECKS_AT_ONCE: usize = 2;
/// Longest time for a program to be ready, and for a child's check: guests may be emulated.
const PATIENCE: Duration = Duration::from_secs(420);

/// What became of the forks of one program.
#[derive(Debug, Default)]
struct Tally {
    forks: u32,
    checked: u32,
    unchecked: u32,
    wrong: Vec<String>,
    longest_fork: Duration,
}

/// Runs every program for so many minutes.
pub(crate) fn storm(minutes: u64, only: Option<&str>, consent: Consent) -> Result<()> {
    step("installing packages", || packages::install(Purpose::Tests, consent))?;
    let folder = host::target().join("storm");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    step("providing the image and what is not in it", || provide(&folder))?;
    let mut failed = Vec::new();
    for workload in WORKLOADS.iter().filter(|workload| only.is_none_or(|only| workload.name.contains(only))) {
        let tally = step(workload.name, || run_workload(workload, &folder, minutes))?;
        let Tally { forks, checked, unchecked, wrong, longest_fork } = &tally;
        println!(
            "{}: {forks} forks (longest {longest_fork:.1?}), {checked} children checked, {unchecked} not, {} wrong",
            workload.name,
            wrong.len()
        );
        wrong.iter().for_each(|what| println!("  {what}"));
        if !wrong.is_empty() || *checked == 0 {
            failed.push(workload.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("not right: {}", failed.join(", ")) }
}

/// The image; the source of sqlite, which a crate of ours brings; autocannon of the npm registry.
fn provide(folder: &Path) -> Result<()> {
    let recipe = folder.join("recipe.yaml");
    std::fs::write(&recipe, RECIPE)?;
    let images = run::output(&mut call(60, &["image", "ls", "--output", "json"]))?;
    if !images.contains(&format!("\"{IMAGE}\"")) {
        run::run(&mut call(1_200, &["image", "build", "--file", &recipe.to_string_lossy()]))?;
    }
    std::fs::write(folder.join("server.js"), SERVER)?;
    std::fs::copy(sqlite_source()?, folder.join("sqlite3.c")).context("copying the source of sqlite")?;
    if !folder.join("node_modules/autocannon").exists() {
        let mut npm = run::program("npm", Duration::from_secs(300));
        npm.args(["install", "--no-fund", "--no-audit", "--prefix"]).arg(folder).arg("autocannon@8");
        run::run(&mut npm)?;
    }
    Ok(())
}

fn sqlite_source() -> Result<PathBuf> {
    let mut cargo = run::cargo(Duration::from_secs(120));
    let text = run::output(cargo.args(["metadata", "--locked", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest = packages
        .filter(|package| package["name"] == "libsqlite3-sys")
        .find_map(|package| package["manifest_path"].as_str())
        .context("no crate of this workspace brings the source of sqlite")?;
    Ok(Path::new(manifest).with_file_name("sqlite3").join("sqlite3.c"))
}

fn call(seconds: u64, arguments: &[&str]) -> Command {
    microvm::call(Duration::from_secs(seconds), arguments)
}

fn patient(arguments: &[&str]) -> Command {
    microvm::call(PATIENCE, arguments)
}

fn run_workload(workload: &Workload, folder: &Path, minutes: u64) -> Result<Tally> {
    let source = format!("storm-{}", std::process::id());
    let outcome = storm_over(workload, folder, minutes, &source);
    let _ = run::run(&mut call(60, &["rm", "--force", &source]));
    outcome
}

fn storm_over(workload: &Workload, folder: &Path, minutes: u64, source: &str) -> Result<Tally> {
    let create = ["create", "--name", source, "--image", IMAGE, "--memory", "1GiB", "--cpus", "2"];
    run::run(&mut call(300, &create))?;
    for name in ["server.js", "sqlite3.c", "node_modules"] {
        let path = folder.join(name);
        run::run(&mut patient(&["cp", &path.to_string_lossy(), &format!("{source}:/root/{name}")]))?;
    }
    run::output(&mut call(60, &["exec", "--detach", source, "--", "bash", "-c", workload.work]))?;
    run::run(&mut patient(&["exec", source, "--", "bash", "-c", workload.ready]))?;
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut tally = Tally::default();
    let mut checks: Vec<JoinHandle<Option<String>>> = Vec::new();
    while Instant::now() < end {
        let (begun, child) = (Instant::now(), format!("{source}-{}", tally.forks));
        run::output(&mut call(120, &["fork", source, "--count", "1", "--name", &child]))?;
        tally.forks += 1;
        tally.longest_fork = tally.longest_fork.max(begun.elapsed());
        for check in checks.extract_if(.., |check| check.is_finished()) {
            finish(check, &mut tally);
        }
        if checks.len() < CHECKS_AT_ONCE {
            let check = workload.check;
            checks.push(std::thread::spawn(move || check_child(&child, check)));
        } else {
            tally.unchecked += 1;
            run::output(&mut call(60, &["rm", "--force", &child]))?;
        }
        std::thread::sleep(EVERY.saturating_sub(begun.elapsed()));
    }
    for check in checks {
        finish(check, &mut tally);
    }
    // The source went on all the time.
    if let Some(wrong) = check_in(source, workload.check) {
        tally.wrong.push(format!("the source: {wrong}"));
    }
    Ok(tally)
}

/// Counts a child whose check has ended, or waits for that.
fn finish(check: JoinHandle<Option<String>>, tally: &mut Tally) {
    tally.checked += 1;
    match check.join() {
        Ok(None) => {}
        Ok(Some(wrong)) => tally.wrong.push(wrong),
        Err(_) => tally.wrong.push("its check panicked".to_owned()),
    }
}

/// Checks a child and deletes it, unless it is wrong: then it stays to be looked at.
fn check_child(child: &str, check: &str) -> Option<String> {
    let wrong = check_in(child, check);
    if wrong.is_none() {
        let _ = run::output(&mut call(60, &["rm", "--force", child]));
    }
    wrong
}

/// What is wrong in a VM by a program's own check.
fn check_in(vm: &str, check: &str) -> Option<String> {
    let output = patient(&["exec", vm, "--", "bash", "-c", check]).output();
    match output {
        Err(error) => Some(format!("{vm}: {error}")),
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = [&output.stdout[..], &output.stderr[..]].concat();
            Some(format!("{vm}: {}: {}", output.status, String::from_utf8_lossy(&said).trim()))
        }
    }
}
