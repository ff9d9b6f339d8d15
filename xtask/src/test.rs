//! Runs the six test levels.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::failures::Failures;
use crate::levels::{Counts, LEVELS, Level};
use crate::packages::{Consent, Purpose};
use crate::steps::step;
use crate::{agent, check, host, microvm, packages, quickstart, run, test_root};

/// Runs the given levels, or all.
pub(crate) fn test(levels: &[&str], consent: Consent) -> Result<()> {
    let chosen: Vec<&Level> = LEVELS
        .iter()
        .filter(|level| levels.is_empty() || levels.contains(&level.number.to_string().as_str()))
        .collect();
    if chosen.is_empty() {
        bail!("no level is called {}: give numbers from 1 to 6", levels.join(" "));
    }
    let mut total = Counts::default();
    let mut lines = Vec::new();
    let mut failures = Failures::default();
    step("installing packages", || packages::install(Purpose::Tests, consent))?;
    step("providing nextest", provide_nextest)?;
    let agent = step("building the guest agent", agent::build)?;
    if chosen.iter().any(|level| level.number == 1) {
        let passed = step("checking the source", check::check);
        if let Err(error) = &passed {
            eprintln!("{error:#}");
        }
        let counts = Counts { passed: passed.is_ok().into(), failed: passed.is_err().into(), skipped: 0 };
        lines.push(format!("check          {counts}"));
        total.add(counts);
    }
    step("building all tests", || build(&agent))?;
    for level in chosen {
        let begun = Instant::now();
        let counts = run_level(level, &agent, &mut failures)?;
        let time = begun.elapsed().as_secs_f64();
        lines.push(format!("{} {:<12} {counts}  ({time:.1} s)", level.number, level.name));
        total.add(counts);
    }
    if !failures.lines().is_empty() {
        eprintln!("\n{}", failures.lines().join("\n"));
    }
    println!("\n{}\n{total}", lines.join("\n"));
    if total.failed > 0 { bail!("{} failed", total.failed) } else { Ok(()) }
}

fn run_level(level: &Level, agent: &Path, failures: &mut Failures) -> Result<Counts> {
    let mut cargo = nextest(agent, level.limit);
    cargo.args(["run", "--locked", "--workspace", "--no-tests=pass", "--no-fail-fast"]);
    cargo.args(["--profile", level.profile, "-E", level.filter]);
    let needs = match level.number {
        5 if !host::is_root() => Err(anyhow::anyhow!("it needs root")),
        6 => provide_machine_tests(agent).map(|(root, image)| {
            // VMMs are started through a hidden command of the program.
            cargo.env("MICROVM_TEST_PROGRAM", microvm::path());
            // Files, for tests that start a QEMU of their own.
            let kernel = root.join("kernels").join(microvm::BUILT_KERNEL).join("vmlinux");
            cargo.env("MICROVM_TEST_KERNEL", kernel).env("MICROVM_TEST_IMAGE", image);
            cargo.env("MICROVM_TEST_ROOT", root);
        }),
        _ => Ok(()),
    };
    if let Err(reason) = needs {
        // In CI nothing may be missing: there a level that cannot be run has failed.
        if std::env::var_os("CI").is_some() {
            return Err(reason.context(format!("level {} ({}) cannot be run", level.number, level.name)));
        }
        let skipped = count(level, agent)?;
        eprintln!("level {} ({}) is skipped, {skipped} tests: {reason:#}", level.number, level.name);
        return Ok(Counts { skipped, ..Counts::default() });
    }
    eprintln!("▸ level {}, {}", level.number, level.name);
    watch(&mut cargo, failures)
}

/// Builds the tests of all crates.
pub(crate) fn build(agent: &Path) -> Result<()> {
    let mut cargo = nextest(agent, Duration::from_secs(40 * 60));
    run::run(cargo.args(["run", "--no-run", "--locked", "--workspace"]))
}

/// Runs nextest and counts; what failing tests say is kept.
pub(crate) fn watch(cargo: &mut Command, failures: &mut Failures) -> Result<Counts> {
    let mut counts = None;
    let succeeded = run::watch(cargo, |line| {
        counts = Counts::read(line).or(counts);
        failures.read(line);
    })?;
    match counts {
        Some(counts) if succeeded == (counts.failed == 0) => Ok(counts),
        Some(counts) => {
            bail!("nextest {} and counted {counts}", if succeeded { "succeeded" } else { "failed" })
        }
        None => bail!("nextest ended without a summary"),
    }
}

/// A call of nextest with what tests of all levels need.
pub(crate) fn nextest(agent: &Path, limit: Duration) -> Command {
    let mut cargo = run::cargo(limit);
    cargo.arg("nextest").env(microvm::AGENT_VARIABLE, agent).env("MICROVM_TEST_AGENT", agent);
    cargo
}

/// How many tests a level has.
fn count(level: &Level, agent: &Path) -> Result<u64> {
    let mut cargo = nextest(agent, level.limit);
    cargo.args(["list", "--locked", "--workspace", "--message-format", "json", "-E", level.filter]);
    let list: serde_json::Value =
        serde_json::from_str(&run::output(&mut cargo)?).context("reading nextest's list")?;
    let suites = list["rust-suites"].as_object().into_iter().flatten();
    let cases = suites.flat_map(|(_, suite)| suite["testcases"].as_object().into_iter().flatten());
    Ok(cases.filter(|(_, case)| case["filter-match"]["status"] == "matches").map(|_| 1).sum())
}

/// Installs nextest if it is missing.
pub(crate) fn provide_nextest() -> Result<()> {
    if run::succeeds(run::cargo(Duration::from_secs(60)).args(["nextest", "--version"])) {
        return Ok(());
    }
    let mut cargo = run::cargo(Duration::from_secs(30 * 60));
    run::run(cargo.args(["install", "--locked", "cargo-nextest"]))
}

/// Prepares a root of its own for the machine tests, so that they never touch the user's VMs. Returns the root and the file of the
/// image.
fn provide_machine_tests(agent: &Path) -> Result<(PathBuf, PathBuf)> {
    if !agent.is_file() {
        bail!("the guest agent is missing");
    }
    // All packages are there by now.
    quickstart::prepare(Consent::Ask)?;
    step("providing the built kernel", microvm::provide_built_kernel)?;
    // As root, VMMs run under other users, who must be able to get there: a home directory would not do.
    let root = if host::is_root() {
        PathBuf::from("/var/lib/microvm-test")
    } else {
        host::target().join("microvm-test")
    };
    let digest = microvm::image_digest()?;
    test_root::furnish(&root, &host::data_root()?, &digest)?;
    let image = root.join("images").join(digest).join("root.erofs");
    Ok((root, image))
}
