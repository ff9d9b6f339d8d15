//! Content of a file, from the host: to a temporary name beside it, then renamed into place.

use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use microvm_protocol::messages::{WriteFile, Written};
use microvm_protocol::mux::StreamHandle;
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use super::direct::DirectWriter;
use super::owner::{Owner, make_all};
use super::path::{absolute, failed};
use super::patience::Patience;
use crate::core::blocking::blocking;
use crate::core::bulk::{Piece, Receiver};
use crate::core::failure::{AgentError, AgentResult, show};

/// Writes a whole file, or changes nothing. It is not synced: a guest's disk dies with its machine, and a snapshot
/// holds the page cache together with the disk.
pub(in crate::platform::linux) async fn write(
    stream: &Arc<StreamHandle>,
    request: WriteFile,
    owner: Option<Owner>,
) -> AgentResult<Written> {
    let receiver = Receiver::new(stream);
    blocking(move || {
        let _patience = Patience::begin();
        write_now(receiver, &request, owner)
    })
    .await
}

/// The temporary file; removed unless it was renamed.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing else can be done for a file that cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn write_now(mut receiver: Receiver, request: &WriteFile, owner: Option<Owner>) -> AgentResult<Written> {
    let asked = absolute(&request.path)?;
    // A link is written through, as every program does; what it points to is replaced.
    let target = if fs::symlink_metadata(asked).is_ok_and(|found| found.is_symlink()) {
        fs::canonicalize(asked).map_err(failed("follow the link", asked))?
    } else {
        asked.to_path_buf()
    };
    let parent = target.parent().ok_or_else(|| AgentError::invalid("the root directory is not a file"))?;
    if request.create_parents {
        make_all(parent, owner).map_err(failed("make the parents of", &target))?;
    }
    let existing = fs::symlink_metadata(&target).ok();
    if existing.as_ref().is_some_and(|found| found.is_dir()) || request.path.ends_with(b"/") {
        return Err(AgentError::invalid(format!("{} is a directory", show(target.as_os_str().as_bytes()))));
    }
    let (file, mut temporary) = make_temporary(parent)?;
    let size = copy(&mut receiver, &file, &target)?;
    let mode = request.mode.or(existing.as_ref().map(|found| found.mode())).unwrap_or(0o644) & 0o7777;
    let named = owner.filter(|owner| !owner.is_default).map(|owner| (owner.uid, owner.gid));
    let of_existing = || existing.as_ref().map(|found| (found.uid(), found.gid()));
    let owner = named
        .or_else(|| request.uid.zip(request.gid))
        .or_else(of_existing)
        .or(owner.map(|owner| (owner.uid, owner.gid)));
    if let Some((uid, gid)) = owner {
        // Changing the owner clears set-user-id bits, so the mode comes after it.
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))
            .map_err(failed("change the owner of", &target))?;
    }
    file.set_permissions(Permissions::from_mode(mode)).map_err(failed("set the mode of", &target))?;
    if let Some(time) = &request.modified {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: time.seconds,
                tv_nsec: time.nanoseconds.min(999_999_999).into(),
            },
        };
        futimens(&file, &times).map_err(failed("set the times of", &target))?;
    }
    fs::rename(&temporary.path, &target).map_err(failed("rename into place", &target))?;
    temporary.keep = true;
    Ok(Written { bytes: size, left_out: None })
}

fn make_temporary(parent: &Path) -> AgentResult<(File, Temporary)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".microvm-write-{}-{number}", std::process::id()));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((file, Temporary { path, keep: false })),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make a file in", parent)(error)),
        }
    }
}

fn copy(receiver: &mut Receiver, file: &File, target: &Path) -> AgentResult<u64> {
    let mut writer = DirectWriter::new(file);
    while let Some(piece) = receiver.next()? {
        match piece {
            Piece::Data(data) => writer.data(&data).map_err(failed("write", target))?,
            Piece::Zeros(count) => writer.zeros(count).map_err(failed("write", target))?,
        }
    }
    writer.finish().map_err(failed("write", target))
}
