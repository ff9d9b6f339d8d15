//! The changes of a guest against its image as a layer (OCI image specification): a tar stream with whiteouts.
//!
//! The upper directory of the root tells which paths differ; their content comes from the joined root, so that nothing of how
//! overlayfs stores it is in the layer. The file system of the upper directory is frozen meanwhile: what is packed is of one
//! moment, and processes that write wait.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use microvm_protocol::frame::GUEST_BULK;
use microvm_protocol::messages::{Packed, Reply};
use microvm_protocol::mux::StreamHandle;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use tar::{EntryType, Header};
use tokio::runtime::Handle;

use super::pack::attributes::xattrs;
use super::pack_root::{Packer, without_mounts};
use super::path::failed;
use crate::core::blocking::blocking;
use crate::core::bulk::Sender;
use crate::core::failure::{AgentError, AgentResult};
use crate::platform::linux::boot::scratch_device;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of `linux/fs.h`.
const FREEZE: libc::Ioctl = 0xC004_5877;
const THAW: libc::Ioctl = 0xC004_5878;

/// Packs the layer. A report of what is not in it follows its end.
pub(in crate::platform::linux) async fn pack_layer(stream: &Arc<StreamHandle>) -> AgentResult<()> {
    let (stream, runtime) = (Arc::clone(stream), Handle::current());
    blocking(move || {
        let scratch = mount_again()?;
        let joined = without_mounts(Path::new("/"))?;
        let base =
            |fd: &OwnedFd, below: &str| PathBuf::from(format!("/proc/self/fd/{}/{below}", fd.as_raw_fd()));
        let sent = AtomicU64::new(0);
        let frozen = Frozen::new(&base(&scratch, "upper"))?;
        let watchdog = Watchdog::new(PATIENCE);
        let packed = std::thread::scope(|scope| {
            scope.spawn(|| watchdog.watch(&frozen, &sent));
            let _ending = Ending(&watchdog);
            let sender = Sender { stream: &stream, runtime: &runtime, sent: Some(&sent) };
            let mut layer = Layer {
                upper: base(&scratch, "upper"),
                packer: Packer::new(sender, base(&joined, ".")),
                files: HashMap::new(),
            };
            layer.walk()?;
            layer.other_names()?;
            // Looked at before the end of the archive is sent: what is of two moments must not look complete.
            if watchdog.has_thawed() {
                return Err(stood_still());
            }
            layer.packer.pending.extend_from_slice(&[0; 1024]);
            layer.packer.flush()?;
            if watchdog.has_thawed() { Err(stood_still()) } else { Ok(layer.packer.left_out) }
        });
        // Thawed before the report: the guest does not wait for the host to take it.
        drop(frozen);
        let packed = Packed { left_out: Some(packed?) };
        Ok(runtime.block_on(stream.send_message(Reply::Packed(packed)))?)
    })
    .await
}

/// The scratch disk as a mount that nobody sees: its first one is below the root.
fn mount_again() -> AgentResult<OwnedFd> {
    let device = scratch_device().ok_or_else(|| {
        AgentError::internal("the scratch disk is not among the disks of this guest".to_owned())
    })?;
    let mounted = || {
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", &*device)?;
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOATIME)
    };
    mounted().map_err(|error| AgentError::internal(format!("mount the scratch disk {device} again: {error}")))
}

/// Time without any progress after which a frozen root is thawed.
///
/// A lookup of the packer can wait for a lock of overlayfs that a writer holds who waits for the thaw; and a host that takes no
/// data must not keep a guest from writing.
const PATIENCE: Duration = Duration::from_secs(10);

fn stood_still() -> AgentError {
    AgentError::internal(format!(
        "reading the changes made no progress for {PATIENCE:?}, so the root was thawed and they are not of one moment: try again"
    ))
}

/// Thaws a root that nothing is read of any more.
struct Watchdog {
    patience: Duration,
    ended: Mutex<bool>,
    woken: Condvar,
    thawed: AtomicBool,
}

/// Ends the watch however the packing ends.
struct Ending<'a>(&'a Watchdog);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Watchdog {
    fn new(patience: Duration) -> Self {
        let (ended, woken, thawed) = (Mutex::default(), Condvar::default(), AtomicBool::default());
        Self { patience, ended, woken, thawed }
    }

    /// Returns when [`Self::end`] was called, or the root was thawed because `sent` stood still.
    fn watch(&self, frozen: &Frozen, sent: &AtomicU64) {
        let mut before = sent.load(Ordering::Relaxed);
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let waited = self.woken.wait_timeout_while(ended, self.patience, |ended| !*ended);
            let (now_ended, time) = waited.unwrap_or_else(PoisonError::into_inner);
            ended = now_ended;
            if *ended {
                return;
            }
            let now = sent.load(Ordering::Relaxed);
            if time.timed_out() && now == before {
                self.thawed.store(true, Ordering::Release);
                frozen.thaw();
                return;
            }
            before = now;
        }
    }

    fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_all();
    }

    fn has_thawed(&self) -> bool {
        self.thawed.load(Ordering::Acquire)
    }
}

/// A file system that takes no writes until this is dropped or thawed.
struct Frozen {
    directory: fs::File,
    thawed: AtomicBool,
}

impl Frozen {
    fn new(directory: &Path) -> AgentResult<Self> {
        // The descriptor of the mount itself is none that takes requests.
        let directory = fs::File::open(directory).map_err(failed("open", Path::new("/")))?;
        request(&directory, FREEZE).map_err(failed("freeze", Path::new("/")))?;
        Ok(Self { directory, thawed: AtomicBool::new(false) })
    }

    /// Lets writers go on; a second call does nothing.
    fn thaw(&self) {
        if self.thawed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = request(&self.directory, THAW) {
            crate::core::console::say(&format!("the root stays frozen: {error}"));
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
    }
}

#[allow(unsafe_code, reason = "no library has these two requests")]
fn request(directory: &fs::File, code: libc::Ioctl) -> std::io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel does not read the argument of these two.
    // Needed: no library has a wrapper of them.
    match unsafe { libc::ioctl(directory.as_raw_fd(), code, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Names of a file that has several.
struct Names {
    first: Vec<u8>,
    /// Number of names that it has, and of those that were packed.
    all: u64,
    packed: u64,
}

struct Layer<'a> {
    upper: PathBuf,
    packer: Packer<'a>,
    /// Files with several names, by device and inode number.
    files: HashMap<(u64, u64), Names>,
}

impl Layer<'_> {
    /// Packs what the upper directory has. `whole`: directories of which everything is packed, because they were renamed.
    fn walk(&mut self) -> AgentResult<()> {
        let mut waiting = vec![(PathBuf::new(), false)];
        while let Some((name, whole)) = waiting.pop() {
            let joined = self.packer.base.join(&name);
            if !whole {
                let path = self.upper.join(&name);
                let upper = fs::symlink_metadata(&path).map_err(failed("look at", &name))?;
                if upper.file_type().is_char_device() && upper.rdev() == 0 {
                    self.mark(&name, WHITEOUT)?;
                    continue;
                }
            }
            let metadata = fs::symlink_metadata(&joined).map_err(failed("look at", &name))?;
            if name.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT)) {
                let shown = [b"/", name.as_os_str().as_bytes()].concat();
                self.packer.left_out.add(&shown, "its name says in a layer that another file is gone");
                continue;
            }
            self.count(&name, &metadata);
            self.packer.entry(&joined, &name, &metadata)?;
            if metadata.is_dir() {
                let (opaque, renamed) = if whole { (false, false) } else { self.kind_of(&name)? };
                if (opaque || renamed) && !name.as_os_str().is_empty() {
                    self.mark(&name.join("x"), OPAQUE)?;
                }
                let whole = whole || renamed;
                let listed = if whole { joined } else { self.upper.join(&name) };
                let mut below: Vec<_> = fs::read_dir(&listed)
                    .and_then(|entries| {
                        entries.map(|entry| Ok((name.join(entry?.file_name()), whole))).collect()
                    })
                    .map_err(failed("list", &name))?;
                below.sort_unstable_by(|a: &(PathBuf, bool), b| b.cmp(a));
                waiting.append(&mut below);
            }
        }
        Ok(())
    }

    /// Tells whether a directory of the upper directory hides what is below it, and whether it was renamed.
    fn kind_of(&self, name: &Path) -> AgentResult<(bool, bool)> {
        let found =
            xattrs(&self.upper.join(name)).map_err(failed("read the extended attributes of", name))?;
        let has = |wanted: &[u8]| found.iter().find(|(name, _)| name == wanted).map(|(_, value)| &value[..]);
        Ok((has(b"trusted.overlay.opaque") == Some(b"y"), has(b"trusted.overlay.redirect").is_some()))
    }

    fn count(&mut self, name: &Path, metadata: &Metadata) {
        if metadata.is_dir() || metadata.nlink() < 2 {
            return;
        }
        let first =
            || Names { first: name.as_os_str().as_bytes().to_vec(), all: metadata.nlink(), packed: 0 };
        self.files.entry((metadata.dev(), metadata.ino())).or_insert_with(first).packed += 1;
    }

    /// Packs names that files of the layer have elsewhere in the image, so that all of them go on being one file.
    fn other_names(&mut self) -> AgentResult<()> {
        self.files.retain(|_, names| names.packed < names.all);
        if self.files.is_empty() {
            return Ok(());
        }
        let mut waiting = vec![PathBuf::new()];
        while let Some(name) = waiting.pop() {
            let path = self.packer.base.join(&name);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                let entries = fs::read_dir(&path).map_err(failed("list", &name))?;
                waiting.extend(entries.flatten().map(|entry| name.join(entry.file_name())));
            } else if let Some(names) = self.files.get(&(metadata.dev(), metadata.ino()))
                && names.first != name.as_os_str().as_bytes()
            {
                self.packer.entry(&path, &name, &metadata)?;
            }
        }
        Ok(())
    }

    /// An empty file beside `name` that says something of it.
    fn mark(&mut self, name: &Path, mark: &[u8]) -> AgentResult<()> {
        let last = name.file_name().map_or(&b""[..], |name| name.as_bytes());
        let marked = if mark == OPAQUE { OPAQUE.to_vec() } else { [mark, last].concat() };
        let marked = name.with_file_name(std::ffi::OsStr::from_bytes(&marked));
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        self.packer.plain(header, marked.as_os_str().as_bytes());
        if self.packer.pending.len() >= GUEST_BULK { self.packer.flush() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfrozen() -> Frozen {
        // Nothing is frozen in a test: a thaw that was asked for is all that is seen.
        Frozen { directory: fs::File::open("/proc/self").unwrap(), thawed: AtomicBool::new(false) }
    }

    #[test]
    fn a_watch_that_is_ended_thaws_nothing() {
        let (watchdog, frozen, sent) =
            (Watchdog::new(Duration::from_millis(50)), unfrozen(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| watchdog.watch(&frozen, &sent));
            watchdog.end();
            watching.join().unwrap();
        });
        assert!(!watchdog.has_thawed() && !frozen.thawed.load(Ordering::Acquire));
    }

    #[test]
    fn a_root_that_nothing_is_read_of_is_thawed() {
        let (watchdog, frozen, sent) =
            (Watchdog::new(Duration::from_millis(50)), unfrozen(), AtomicU64::new(0));
        watchdog.watch(&frozen, &sent);
        assert!(watchdog.has_thawed() && frozen.thawed.load(Ordering::Acquire));
    }
}
