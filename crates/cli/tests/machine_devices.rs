//! Devices that programs of others look for in a guest, with both kernels of ours.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use support::Home;

/// Uses each device instead of looking for its name: makes a network interface, asks for a loop device, reads what a file
/// system in user space is asked first, and opens a message queue's directory.
const USE: &str = r#"
import fcntl, os, struct
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH14x", b"tun7", 0x1001))  # TUNSETIFF: IFF_TUN, IFF_NO_PI
print("tun7" in os.listdir("/sys/class/net"))
print(fcntl.ioctl(os.open("/dev/loop-control", os.O_RDWR), 0x4c82) >= 0)  # LOOP_CTL_GET_FREE
try:
    os.read(os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK), 1 << 16)
except PermissionError as error:  # no file system was mounted with it: the driver answered
    print(error.errno == 1)
print(os.listdir("/dev/mqueue"))
"#;

fn devices_work(kernel: &str) {
    let Some(home) = Home::open() else { return };
    if !home.root().join("kernels").join(kernel).exists() {
        eprintln!("SKIPPED: the root has no kernel `{kernel}`");
        return;
    }
    let said = home.must(&[
        "run",
        "--kernel",
        kernel,
        "--memory",
        "256MiB",
        "--timeout",
        "60s",
        "--",
        "python3",
        "-c",
        USE,
    ]);
    assert_eq!(said, "True\nTrue\nTrue\n[]\n");
}

#[test]
fn devices_work_with_the_built_kernel() {
    devices_work("built");
}

#[test]
fn devices_work_with_the_distribution_s_kernel() {
    devices_work("distribution");
}
