//! Layers of the cage that this host can offer.

use std::collections::BTreeMap;

use crate::cgroup;
use crate::clone::{Side, clone};

/// Namespaces of a cage.
pub(crate) const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// A layer of the cage on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// In use; with a detail for people if there is one.
    On(Option<String>),
    /// Not in use, and the reason.
    Off(String),
}

/// Name of the layer that limits memory and tasks.
pub const CGROUP_LIMITS: &str = "cgroup limits";

/// Name of the layer that limits processor time.
pub const CPU_LIMIT: &str = "cgroup limit of processor time, where a template has one";

/// Every layer by name. Starts a process to try; call it once.
#[must_use]
pub fn layers() -> BTreeMap<String, Layer> {
    let on = || Layer::On(None);
    let mut layers = BTreeMap::new();
    let own_user = if nix::unistd::geteuid().is_root() {
        on()
    } else {
        Layer::Off("the server does not run as root".to_owned())
    };
    layers.insert("own user id".to_owned(), own_user);
    let namespaces = match try_namespaces() {
        Ok(()) => on(),
        Err(error) => Layer::Off(format!(
            "{error} (is kernel.unprivileged_userns_clone or an AppArmor profile in the way?)"
        )),
    };
    layers.insert("own root file system".to_owned(), namespaces.clone());
    layers.insert("namespaces (user, mount, pid, network, ipc, uts)".to_owned(), namespaces);
    layers.insert("no capabilities, no new privileges".to_owned(), on());
    layers.insert("Landlock".to_owned(), landlock());
    layers.insert(
        CGROUP_LIMITS.to_owned(),
        cgroup::try_out().map_or_else(Layer::Off, |what| Layer::On(Some(what))),
    );
    layers.insert(
        CPU_LIMIT.to_owned(),
        cgroup::try_out_cpu().map_or_else(Layer::Off, |what| Layer::On(Some(what))),
    );
    layers
}

fn landlock() -> Layer {
    #[allow(unsafe_code)]
    // SAFETY: with a null attribute and the version flag the call only returns a number (landlock_create_ruleset(2)).
    // Needed: the `landlock` crate tells the version only to a process that has restricted itself.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    if abi >= 1 {
        Layer::On(Some(format!("ABI {abi}")))
    } else {
        Layer::Off("the kernel has no Landlock".to_owned())
    }
}

fn try_namespaces() -> std::io::Result<()> {
    // The child ends at once without touching anything, so that other threads of this process do not matter.
    match clone(NAMESPACES)? {
        Side::Child => {
            #[allow(unsafe_code)]
            // SAFETY: _exit ends the child without running anything of the copied process.
            // Needed: `std::process::exit` runs handlers that were copied with it.
            unsafe {
                libc::_exit(0)
            }
        }
        Side::Parent(pid) => {
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).map_err(std::io::Error::from)?;
            Ok(())
        }
    }
}
