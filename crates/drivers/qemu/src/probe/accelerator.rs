//! The accelerator that can run stock kernels here.

use std::fs;

use microvm_ports::capabilities;

use crate::config::AcceleratorChoice;

/// The accelerator in use, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accelerator {
    pub(crate) kind: Kind,
    pub(crate) reason: String,
}

/// Accelerators of QEMU that this driver uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Kvm,
    Tcg,
}

impl Kind {
    /// Name in the `compatibility` of saved states, which outlive this process.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl From<&Accelerator> for capabilities::Accelerator {
    fn from(accelerator: &Accelerator) -> Self {
        let kind = match accelerator.kind {
            Kind::Kvm => capabilities::AcceleratorKind::Kvm,
            Kind::Tcg => capabilities::AcceleratorKind::Tcg,
        };
        Self { kind, reason: accelerator.reason.clone() }
    }
}

const COST: &str = "guests are emulated: about 2 s to boot and 10 to 30 times slower than the host; \
                    emulation is not hardware isolation";

/// Chooses. An open `/dev/kvm` that makes a VM is not enough: it may belong to a module that runs paravirtual guests
/// only, on a processor without vmx or svm; a stock kernel crawls there for a minute and dies.
pub(crate) fn choose(choice: AcceleratorChoice) -> Accelerator {
    match choice {
        AcceleratorChoice::Kvm => Accelerator { kind: Kind::Kvm, reason: "set by the operator".to_owned() },
        AcceleratorChoice::Tcg => {
            Accelerator { kind: Kind::Tcg, reason: format!("set by the operator; {COST}") }
        }
        AcceleratorChoice::Auto => {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            match kvm_makes_a_vm().and_then(|()| processor_virtualises(&cpuinfo)) {
                Ok(()) => Accelerator {
                    kind: Kind::Kvm,
                    reason: "/dev/kvm makes VMs and the processor has vmx or svm".to_owned(),
                },
                Err(why) => {
                    Accelerator { kind: Kind::Tcg, reason: format!("{why}, so KVM cannot be used; {COST}") }
                }
            }
        }
    }
}

fn processor_virtualises(cpuinfo: &str) -> Result<(), String> {
    if cfg!(target_arch = "aarch64") {
        // Its processors tell no such flag; the kernel offers the device only where it can use them.
        return Ok(());
    }
    let has = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    if has {
        Ok(())
    } else {
        Err("/dev/kvm is there, but the processor offers neither vmx nor svm".to_owned())
    }
}

#[allow(unsafe_code)]
fn kvm_makes_a_vm() -> Result<(), String> {
    use std::os::fd::AsRawFd;
    // KVM_CREATE_VM of linux/kvm.h: _IO(0xAE, 0x01).
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm cannot be opened ({error})"))?;
    // SAFETY: the request takes an integer (0, the default machine type) and returns a new descriptor or -1.
    // Needed: the crates for KVM are not otherwise used, and requests of `rustix` and `nix` are unsafe as well.
    let vm = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, 0) };
    if vm < 0 {
        return Err(format!("/dev/kvm makes no VM ({})", std::io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was made just now and is ours; closing it removes the empty VM.
    unsafe { libc::close(vm) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_virtualisation_is_seen() {
        assert!(processor_virtualises("flags\t\t: fpu vmx sse\n").is_ok());
        assert!(processor_virtualises("flags\t\t: fpu svm_lock sse\n").is_err());
        assert!(processor_virtualises("").is_err());
    }

    #[test]
    fn emulation_says_what_it_costs() {
        let chosen = choose(AcceleratorChoice::Tcg);
        assert_eq!(chosen.kind, Kind::Tcg);
        assert!(chosen.reason.contains("not hardware isolation"));
    }
}
