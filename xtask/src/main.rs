//! `cargo xtask …`: the chores of this repository.
//!
//! One file per verb; what several verbs need has a file of its own. What it does *not* do: anything the product itself
//! can do. It calls `microvm` for that, as a user would.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program for terminals: this is how it speaks.

mod agent;
mod architecture;
mod arrows;
mod bench;
mod check;
mod circles;
mod commits;
mod debian13;
mod dependencies;
mod docs_test;
mod failures;
mod host;
mod levels;
mod licence;
mod microvm;
mod packages;
mod quickstart;
mod rows;
mod run;
mod sizes;
mod steps;
mod storm;
mod suites;
mod test;
mod test_root;
mod toolchain;
mod words;

use std::process::ExitCode;

use packages::Consent;

const HELP: &str = "\
Usage: cargo xtask <verb> [--yes]

  quickstart       install what is missing, build, make the default image, run code in a microVM
  test [LEVEL…]    the six test levels (1 unit, 2 conformance, 3 service, 4 command line, 5 host, 6 machine)
  host debian13    a Debian 13 as the host: its packages and QEMU, and a fifth of the machine tests
  check            format, clippy, documentation, crate arrows, file sizes, forbidden words, toolchain,
                   tests that documents name, dependencies against deny.toml, and messages of commits
  bench [ARG…]     `microvm bench` of the release build
  storm [MINUTES [PROGRAM]]
                   mariadb, gcc, node, postgres and git in a VM that is forked every ten seconds (10 minutes
                   each; PROGRAM: a part of one's name)
  suites           the public file-system suites pjdfstest and fsx on the root of a guest, on a folder of the host
                   and on a plain ext4; what fails is compared with xtask/src/suites/explained.txt
  docs-test [FILE…]
                   the commands in the README and the guides, run in a root of their own; what they print is compared
                   with the text

  --yes            install missing packages without asking";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (yes, words): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|word| matches!(*word, "--yes" | "-y"));
    let consent = if yes.is_empty() { Consent::Ask } else { Consent::Given };
    let outcome = match words.as_slice() {
        ["quickstart"] => quickstart::quickstart(consent),
        ["test", levels @ ..] => test::test(levels, consent),
        ["check"] => check::check(),
        ["host", "debian13"] => debian13::debian13(consent),
        ["storm", rest @ ..] => match minutes(rest) {
            Some((minutes, only)) => storm::storm(minutes, only, consent),
            None => {
                eprintln!("{HELP}");
                return ExitCode::from(2);
            }
        },
        ["suites"] => suites::suites(consent),
        ["docs-test", files @ ..] => docs_test::docs_test(files, consent),
        ["bench", rest @ ..] => bench::bench(rest, consent),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Minutes for each program of a storm, and which one; `None` if that is not what was written.
fn minutes<'a>(words: &[&'a str]) -> Option<(u64, Option<&'a str>)> {
    match words {
        [] => Some((10, None)),
        [minutes] => Some((minutes.parse().ok()?, None)),
        [minutes, program] => Some((minutes.parse().ok()?, Some(program))),
        _ => None,
    }
}
