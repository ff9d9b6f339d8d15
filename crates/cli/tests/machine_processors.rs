//! Processors of guests and what wakes them, in VMs and in their children.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use support::Home;

/// Number of processors, how many of two programs bound to one each have run, and the timer of each processor.
const LOOK: &str = "nproc; for cpu in 0 1; do taskset -c $cpu sh -c 'echo ran' & done; wait; \
    cat /sys/devices/system/clockevents/clockevent*/current_device";

fn both_processors_work(kernel: &str) {
    let Some(home) = Home::open() else { return };
    if !home.root().join("kernels").join(kernel).exists() {
        eprintln!("SKIPPED: the root has no kernel `{kernel}`");
        return;
    }
    home.must(&["create", "--name", "dev", "--kernel", kernel, "--cpus", "2", "--memory", "256MiB"]);
    let look = |vm: &str| home.must(&["exec", "--timeout", "60s", vm, "--", "sh", "-c", LOOK]);
    let expected = "2\nran\nran\nlapic\nlapic\n";
    assert_eq!(look("dev"), expected);
    // A child of two processors, that of the child too: the second one is loaded into a VMM that waited.
    home.must(&["fork", "dev", "--name", "child"]);
    assert_eq!(look("child"), expected);
    home.must(&["fork", "dev", "--name", "second"]);
    assert_eq!(look("second"), expected);
    home.must(&["fork", "child", "--name", "grandchild"]);
    for vm in ["grandchild", "dev"] {
        assert_eq!(look(vm), expected);
        home.must(&["rm", vm]);
    }
    for vm in ["child", "second"] {
        home.must(&["rm", vm]);
    }
}

#[test]
fn both_processors_work_with_the_built_kernel() {
    both_processors_work("built");
}

#[test]
fn both_processors_work_with_the_distribution_s_kernel() {
    both_processors_work("distribution");
}
