//! A storm over forks, snapshots and pools: a killer ends the server, VMMs of sources and of children, and supervisors at
//! random moments while VMs are forked, saved, restored, rolled back and handed out. After each round every VM that was
//! reported running runs and knows what it knew, every snapshot that is listed is whole, and nothing is left that belongs
//! to nothing.
//!
//! `MICROVM_STORM_ROUNDS` is the number of rounds; `MICROVM_STORM_SEED` repeats a choice (not the moments at which the
//! host runs things).
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they did and why they skip"
)]

mod fork_storm;
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fork_storm::acquirer::Acquirer;
use fork_storm::check::{self, Litter};
use fork_storm::forker::Forker;
use fork_storm::killer::Killer;
use fork_storm::saver::Saver;
use support::Home;
use support::dice::{Dice, number};

/// VMs that wait in the pool.
const WAITING: u64 = 2;

#[test]
fn branches_of_running_vms_survive_a_storm() {
    let Some(home) = Home::open() else { return };
    let rounds = number("MICROVM_STORM_ROUNDS").unwrap_or(10);
    let seed = number("MICROVM_STORM_SEED").unwrap_or(u64::from(std::process::id()) * 7919 + 1);
    eprintln!("{rounds} rounds, seed {seed}");
    home.must(&["pool", "create", "pool", "--memory", "256MiB", "--min", &WAITING.to_string(), "--max", "8"]);
    let mut forker = Forker::new(Dice(seed + 1));
    let mut saver = Saver::new(Dice(seed + 2));
    let mut acquirers = [Acquirer::new(0, Dice(seed + 3)), Acquirer::new(1, Dice(seed + 4))];
    let mut killer = Killer::new(Dice(seed));
    let mut litter = Litter::default();
    for round in 1..=rounds {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| forker.prepare(&home));
            saver.prepare(&home);
        });
        let sources = [forker.source(), saver.source()];
        let known = check::listed(&home);
        let busy = AtomicUsize::new(2 + acquirers.len());
        let done = || {
            busy.fetch_sub(1, Ordering::AcqRel);
        };
        let blow = std::thread::scope(|scope| {
            scope.spawn(|| {
                forker.live(&home);
                done();
            });
            scope.spawn(|| {
                saver.live(&home);
                done();
            });
            for acquirer in &mut acquirers {
                scope.spawn(|| {
                    acquirer.live(&home);
                    done();
                });
            }
            killer.strike(&home, &sources, &busy, round)
        });
        eprintln!("round {round}: {blow:?}");
        let expected: BTreeSet<String> = std::thread::scope(|scope| {
            let mut checks = vec![
                scope.spawn(|| forker.check(&home, &blow, &known)),
                scope.spawn(|| saver.check(&home, &blow, &known)),
            ];
            for acquirer in &mut acquirers {
                checks.push(scope.spawn(|| acquirer.check(&home, &blow, &known)));
            }
            checks.into_iter().flat_map(|check| check.join().unwrap()).collect()
        });
        check::vms(&home, &expected);
        check::snapshots(&home);
        check::pool(&home, WAITING);
        killer.look(&home);
        litter.look(&home);
        eprintln!("  {} VMs, {:.1} s", expected.len(), begun.elapsed().as_secs_f64());
    }
    eprintln!("killed: {:?}", killer.done());
    home.must(&["pool", "rm", "pool"]);
    for (name, _) in home.states() {
        home.must(&["rm", &name]);
    }
    check::remove_all_snapshots(&home);
    Litter::expect_none(&home);
    home.end_server();
    home.expect_nothing_left(&killer.seen());
    for directory in ["layers", "snapshots"] {
        assert!(support::names(&home.root().join(directory)).is_empty(), "{directory} is not empty");
    }
}
