//! Shutdown of the guest.

use std::time::Duration;

use microvm_protocol::messages::Shutdown;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};

use crate::core::console::say;

/// Last line on the console before a reset that stands for a power-off, in the most urgent level (0).
const POWER_OFF_MARK: &str = "<0>microvm-agent: powering off";

/// Longest grace.
const MOST_GRACE: Duration = Duration::from_secs(600);

/// Asks all programs to end, kills them after the grace, and ends the machine.
pub(in crate::platform::linux) async fn shut_down(request: Shutdown) {
    let grace = Duration::from_millis(request.grace_ms).min(MOST_GRACE);
    signal_all(Signal::TERM);
    let started = tokio::time::Instant::now();
    // The kernel signals every end of a child: no need to look at intervals.
    if let Ok(mut children) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) {
        while anyone_left() {
            let left = grace.saturating_sub(started.elapsed());
            if left.is_zero() || tokio::time::timeout(left, children.recv()).await.is_err() {
                break;
            }
        }
    }
    // Also after all seem gone: a program may have started another one meanwhile.
    signal_all(Signal::KILL);
    // Never returns: syncing may take a while, and answers can still leave meanwhile.
    drop(tokio::task::spawn_blocking(move || end_machine(request.reboot)));
}

fn others() -> impl Iterator<Item = Pid> {
    let own = rustix::process::getpid();
    // Kernel threads are children of number 2 and have no memory; signals to them do nothing.
    // Processes that /proc does not show are not asked; the machine ends all the same.
    crate::platform::linux::system::processes::all()
        .into_iter()
        .flatten()
        .filter(|process| process.message.parent != 2 && process.message.pid != 2)
        .filter(|process| process.message.state != u32::from('Z'))
        .filter_map(|process| Pid::from_raw(process.message.pid.cast_signed()))
        .filter(move |pid| *pid != own && !pid.is_init())
}

fn anyone_left() -> bool {
    others().next().is_some()
}

fn signal_all(signal: Signal) {
    for pid in others() {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}

/// Writes everything to the disks and ends the machine. Powering off needs ACPI; without it a reset does, which a host
/// that runs QEMU with `-no-reboot` sees as the end, and a line on the console tells it from a restart.
pub(crate) fn end_machine(again: bool) -> ! {
    rustix::fs::sync();
    // Without this each volume would need its journal replayed, which a VM that only reads it cannot do.
    for target in volumes() {
        let _ = mount_remount(&*target, MountFlags::RDONLY, c"");
    }
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    if !again {
        if std::path::Path::new("/sys/firmware/acpi").exists() {
            let _ = reboot(RebootCommand::PowerOff);
        }
        // The host's driver reads this. Through the kernel's log, which is on the console before the write returns.
        let _ = std::fs::write("/dev/kmsg", POWER_OFF_MARK);
    }
    let error = reboot(RebootCommand::Restart);
    say(&format!("the machine cannot be ended: {error:?}"));
    std::process::abort()
}

/// Paths at which disks other than that of the root are mounted.
fn volumes() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of_disks = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, target) = (words.next()?, words.next()?);
        // The kernel writes blanks and backslashes of a path as three octal digits.
        (device.starts_with("/dev/") && target != "/" && words.next()? == "ext4").then(|| unescaped(target))
    });
    of_disks.collect()
}

fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (written, meant)| path.replace(written, meant))
}
