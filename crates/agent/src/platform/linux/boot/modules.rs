//! Kernel modules that the initial file system brings along.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::{BootError, failed};

/// Loads the files named in `<directory>/order`, in that order. No such file: nothing to load.
pub(super) fn load(directory: &str) -> Result<(), BootError> {
    let directory = Path::new(directory);
    let Ok(order) = fs::read_to_string(directory.join("order")) else { return Ok(()) };
    for name in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let path = directory.join(name);
        let file = fs::File::open(&path).map_err(failed(format!("open module {name}")))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // The kernel may have it built in.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(format!("load module {name}"))(error)),
        }
    }
    Ok(())
}
