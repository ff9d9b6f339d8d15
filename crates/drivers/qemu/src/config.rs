//! Settings of the driver.

use std::time::Duration;

use camino::Utf8PathBuf;

/// The accelerator to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM if it can run stock kernels, else TCG.
    #[default]
    Auto,
    /// KVM; a host without it is refused.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The QEMU program; looked up in `PATH` if it is a bare name.
    pub program: Utf8PathBuf,
    /// This very program, which is run again as the supervisor of each machine.
    pub launcher: Utf8PathBuf,
    /// The accelerator to use.
    pub accelerator: AcceleratorChoice,
    /// Time limit from the start of QEMU to its QMP greeting.
    pub start_deadline: Duration,
    /// Time limit of the answer to one QMP command.
    pub command_deadline: Duration,
    /// Cap of the console log of one VM in bytes; twice that is kept at most.
    pub console_cap: u64,
    /// True if VMMs are started so that the kernel can note what they write to their guest's memory, which makes the
    /// pause of a live branch short. It is not where the kernel cannot (before Linux 6.9).
    pub write_tracking: bool,
}

impl QemuConfig {
    /// Defaults, with `launcher` as the supervisor program.
    #[must_use]
    pub fn new(launcher: Utf8PathBuf) -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            launcher,
            accelerator: AcceleratorChoice::Auto,
            // QEMU greets after some 30 ms; the rest is for a host under heavy load.
            start_deadline: Duration::from_secs(20),
            command_deadline: Duration::from_secs(10),
            console_cap: 1 << 20,
            write_tracking: true,
        }
    }
}
