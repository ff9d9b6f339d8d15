//! Files that hold one line.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::core::failure::show;

/// Makes `line`, or lines, which end in a newline, all that the file holds.
///
/// Written over what is there, not into an emptied file: ext4 brings a file that was emptied and closed to the disk at
/// once, for which an emulated guest translates and runs 5,000 pieces of code, 25 ms in a new child. A power cut in
/// between may leave the end of a longer old line; who this guest is gets told again at every start.
pub(super) fn write_line(path: &str, line: impl AsRef<[u8]>) -> Result<(), String> {
    let line = line.as_ref();
    let failed = |error: std::io::Error| format!("write {}: {error}", show(path.as_bytes()));
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        // A guest may have put a pipe or a terminal there.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(Path::new(path))
        .map_err(failed)?;
    file.write_all(line).map_err(failed)?;
    let length = line.len() as u64;
    if file.metadata().map_err(failed)?.len() > length {
        file.set_len(length).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_the_place_of_a_longer_one_and_of_a_shorter_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name").to_str().unwrap().to_owned();
        for line in ["short\n", "much longer\n", "again\n", "other\n"] {
            write_line(&path, line).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), line);
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(write_line(path.to_str().unwrap(), "x\n").unwrap_err().contains("pipe"));
    }
}
