//! The guest's clocks against the host's: a wrong TSC frequency lets a guest boot with a clock that runs wrong.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant, SystemTime};

use support::{Home, until};

/// Time for which the clocks are watched.
const SPAN: Duration = Duration::from_secs(6);

/// Time for which guests are paused.
const STOOD_STILL: Duration = Duration::from_secs(3);

/// Prints both clocks in nanoseconds for every line it gets.
const GUEST: &str = "import sys, time
for line in sys.stdin: print(time.monotonic_ns(), time.time_ns(), flush=True)";

/// One reading: the host's clock in the middle of the question, and the guest's.
struct Reading {
    host: Instant,
    wall_error: f64,
    monotonic: f64,
    real: f64,
    /// Half of the time the answer took: nothing is known better than that.
    doubt: f64,
}

fn read(ask: &mut ChildStdin, answers: &mut BufReader<ChildStdout>) -> Reading {
    let begun = Instant::now();
    writeln!(ask, "now").unwrap();
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    let took = begun.elapsed();
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - took / 2;
    let (monotonic, real) = line.trim().split_once(' ').unwrap();
    let seconds = |text: &str| {
        let nanoseconds: u64 = text.parse().unwrap();
        Duration::from_nanos(nanoseconds).as_secs_f64()
    };
    Reading {
        host: begun + took / 2,
        wall_error: seconds(real) - wall.as_secs_f64(),
        monotonic: seconds(monotonic),
        real: seconds(real),
        doubt: took.as_secs_f64() / 2.0,
    }
}

/// The quickest of many.
fn best(ask: &mut ChildStdin, answers: &mut BufReader<ChildStdout>) -> Reading {
    let readings = (0..50).map(|_| read(ask, answers));
    readings.min_by(|one, other| one.doubt.total_cmp(&other.doubt)).unwrap()
}

fn clocks_agree_with(kernel: &str) {
    let Some(home) = Home::open() else { return };
    if !home.root().join("kernels").join(kernel).exists() {
        eprintln!("SKIPPED: the root has no kernel `{kernel}`");
        return;
    }
    home.must(&["create", "--name", "dev", "--kernel", kernel]);
    let mut command = home.command(&["exec", "-i", "dev", "--", "python3", "-u", "-c", GUEST]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ask = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    let first = best(&mut ask, &mut answers);
    std::thread::sleep(SPAN);
    let second = best(&mut ask, &mut answers);
    let host = (second.host - first.host).as_secs_f64();
    let doubt = (first.doubt + second.doubt) / host;
    let monotonic = (second.monotonic - first.monotonic) / host - 1.0;
    let real = (second.real - first.real) / host - 1.0;
    eprintln!(
        "{kernel}: monotonic {:+.4} %, real {:+.4} %, known to {:.4} %; wall clock off by {:+.1} ms",
        monotonic * 100.0,
        real * 100.0,
        doubt * 100.0,
        second.wall_error * 1_000.0
    );
    assert!(doubt < 0.0005, "the answers were too slow to tell");
    assert!(monotonic.abs() < 0.001 && real.abs() < 0.001, "{monotonic} {real}");
    assert!(second.wall_error.abs() < 0.1, "the wall clock is off by {} s", second.wall_error);
    home.must(&["pause", "dev"]);
    std::thread::sleep(STOOD_STILL);
    home.must(&["resume", "dev"]);
    let third = best(&mut ask, &mut answers);
    assert!(third.wall_error.abs() < 0.1, "the wall clock is off by {} s after a pause", third.wall_error);
    // By hand or not: who is idle stands still, and the next request wakes it.
    home.must(&["create", "--name", "idle", "--kernel", kernel, "--pause-after", "1s"]);
    until("an idle VM stands still", 20, || home.state("idle").0 == "paused");
    std::thread::sleep(STOOD_STILL);
    let late = home.must(&["exec", "idle", "--", "python3", "-c", "import time; print(time.time())"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let behind = now - late.trim().parse::<f64>().unwrap();
    assert!((0.0..1.5).contains(&behind), "the wall clock is {behind} s behind after the VM was woken");
    never_goes_back(&home);
    drop(ask);
    assert!(child.wait().unwrap().success());
    home.must(&["rm", "dev", "idle"]);
}

/// Reads the wall clock until it is told to stop; writes how many readings there were and by how many nanoseconds the
/// clock went back at most.
const WATCHER: &str = "import os, time
last = time.time_ns(); back = count = 0
while count % 1000 or not os.path.exists('/tmp/stop'):
    now = time.time_ns(); count += 1
    back = max(back, last - now); last = now
open('/tmp/watched.new', 'w').write(f'{count} {back}')
os.rename('/tmp/watched.new', '/tmp/watched')";

/// The wall clock of `dev` and its children never goes back, while it is forked, paused and resumed.
fn never_goes_back(home: &Home) {
    home.must(&["exec", "-d", "dev", "--", "python3", "-c", WATCHER]);
    for number in 0..6 {
        let name = format!("child-{number}");
        home.must(&["fork", "dev", "--name", &name]);
        if number % 3 == 2 {
            home.must(&["pause", "dev"]);
            home.must(&["resume", "dev"]);
        }
        if number % 3 != 0 {
            home.must(&["rm", &name]);
        }
    }
    for vm in ["dev", "child-0", "child-3"] {
        let stop = "touch /tmp/stop; until [ -e /tmp/watched ]; do sleep 0.05; done; cat /tmp/watched";
        let watched = home.must(&["exec", "--timeout", "60s", vm, "--", "sh", "-c", stop]);
        eprintln!("{vm}: readings and steps back in ns: {watched}");
        let (count, back) = watched.trim().split_once(' ').unwrap();
        assert!(count.parse::<u64>().unwrap() > 1_000, "{vm}: too few readings to tell: {count}");
        assert_eq!(back, "0", "{vm}: the wall clock went back by {back} ns");
    }
    home.must(&["rm", "child-0", "child-3"]);
}

#[test]
fn with_the_distribution_kernel() {
    clocks_agree_with("distribution");
}

#[test]
fn with_the_built_kernel() {
    clocks_agree_with("built");
}
