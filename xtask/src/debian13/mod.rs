//! A Debian 13 as the host: its packages, its QEMU, and a fifth of the machine tests.

mod root;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::failures::Failures;
use crate::levels::{Counts, LEVELS};
use crate::packages::{Consent, Purpose};
use crate::steps::step;
use crate::{host, microvm, packages, quickstart, run, test};

/// Where the program keeps its files there, as anywhere.
const DATA: &str = "var/lib/microvm";
/// The root of the machine tests there.
const TEST_DATA: &str = "/var/lib/microvm-test";

/// The machine tests that depend most on QEMU and on what is around it: binaries, and in some only tests of these names.
const CHOSEN: [(&str, &[&str]); 8] = [
    ("machine_conformance", &[]),
    ("machine_memory", &[]),
    ("machine_processors", &[]),
    ("machine_rootless", &[]),
    (
        "machine_forks",
        &["children_go_on_with_everything_but_the_identity", "memory_and_disk_are_of_one_moment"],
    ),
    ("machine_snapshots", &["a_vm_goes_back_in_time_and_copies_go_on_from_there"]),
    ("machine_shares", &["a_folder_is_read_and_written_as_its_owner_and_nothing_else_is"]),
    ("machine_bad_days", &["a_killed_vmm_is_told_as_that", "a_guest_that_powers_off_or_restarts_does_so"]),
];
/// As many there are at least: a name that fits no test any more is told.
const AT_LEAST: u64 = 13;

/// Makes the root if need be, does there what a newcomer does, and runs the tests.
pub(crate) fn debian13(consent: Consent) -> Result<()> {
    step("installing packages", || packages::install(Purpose::Tests, consent))?;
    let agent = quickstart::prepare(consent)?;
    step("providing the built kernel", microvm::provide_built_kernel)?;
    step("providing nextest", test::provide_nextest)?;
    step("building all tests", || test::build(&agent))?;
    step("making a Debian 13", root::provide)?;
    let program = microvm::path();
    let shared = [host::repository(), host::target()];
    let shared = [shared[0].as_path(), shared[1].as_path()];
    step("a newcomer's first steps there", || {
        let script = shared[0].join("xtask/newcomer.sh");
        let words = ["sh", &script.to_string_lossy(), &program.to_string_lossy()].map(ToOwned::to_owned);
        let mut command = root::command(Duration::from_secs(20 * 60), &shared, &words);
        run::run(command.env_remove("MICROVM_ROOT").env_remove("MICROVM_AGENT"))
    })?;
    let image = step("furnishing the root of the tests", furnish)?;
    let counts = step("a fifth of the machine tests there", || run_tests(&agent, &image, &shared))?;
    println!("\nDebian 13: {counts}");
    if counts.failed > 0 {
        bail!("{} failed", counts.failed);
    }
    if counts.passed < AT_LEAST {
        bail!("only {} tests were run, of at least {AT_LEAST}: has one been renamed?", counts.passed);
    }
    Ok(())
}

/// Puts what was made there, and the built kernel of this host, into the root of the tests; returns the image's path there.
fn furnish() -> Result<PathBuf> {
    let data = root::folder().join(DATA);
    let tests = root::folder().join(TEST_DATA.trim_start_matches('/'));
    std::fs::create_dir_all(&tests).with_context(|| format!("making {}", tests.display()))?;
    for folder in ["images", "kernels"].map(|name| tests.join(name)).iter().filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    copy(&data.join("images"), &tests)?;
    copy(&data.join("kernels"), &tests)?;
    let built = tests.join("kernels").join(microvm::BUILT_KERNEL);
    if !built.exists() {
        copy(&host::data_root()?.join("kernels").join(microvm::BUILT_KERNEL), &tests.join("kernels"))?;
    }
    let entries = std::fs::read_dir(tests.join("images")).context("looking for the image")?;
    let images = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let image = images.map(|name| Path::new(TEST_DATA).join("images").join(name).join("root.erofs"));
    image.into_iter().find(|image| in_root(image).is_file()).context("there is no image")
}

fn in_root(path: &Path) -> PathBuf {
    root::folder().join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut copy = run::program("cp", Duration::from_secs(10 * 60));
    run::run(copy.args(["--archive", "--sparse=always", "--reflink=auto"]).arg(from).arg(to))
}

/// The chosen tests, in nextest's language.
fn filter() -> String {
    let one = |(binary, names): &(&str, &[&str])| {
        let names: Vec<String> = names.iter().map(|name| format!("test(={name})")).collect();
        match names.is_empty() {
            true => format!("binary({binary})"),
            false => format!("(binary({binary}) & ({}))", names.join(" + ")),
        }
    };
    CHOSEN.iter().map(one).collect::<Vec<_>>().join(" + ")
}

fn run_tests(agent: &Path, image: &Path, shared: &[&Path]) -> Result<Counts> {
    let machine = LEVELS.iter().find(|level| level.name == "machine").context("there is no such level")?;
    let mut cargo = test::nextest(agent, machine.limit);
    let runner = serde_json::to_string(&root::runner(shared))?;
    cargo.args(["run", "--locked", "--workspace", "--no-fail-fast", "--profile", machine.profile]);
    cargo.args(["--config", &format!("target.x86_64-unknown-linux-gnu.runner={runner}"), "-E", &filter()]);
    cargo.env("MICROVM_TEST_PROGRAM", microvm::path()).env("MICROVM_TEST_IMAGE", image);
    cargo.env("MICROVM_TEST_ROOT", TEST_DATA);
    let kernel = Path::new(TEST_DATA).join("kernels").join(microvm::BUILT_KERNEL).join("vmlinux");
    cargo.env("MICROVM_TEST_KERNEL", kernel);
    let mut failures = Failures::default();
    let counts = test::watch(&mut cargo, &mut failures)?;
    if !failures.lines().is_empty() {
        eprintln!("\n{}", failures.lines().join("\n"));
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_names_binaries_and_tests() {
        let filter = filter();
        assert!(filter.starts_with("binary(machine_conformance) + "), "{filter}");
        assert!(
            filter.contains(
                "(binary(machine_snapshots) & (test(=a_vm_goes_back_in_time_and_copies_go_on_from_there)))"
            ),
            "{filter}"
        );
    }
}
