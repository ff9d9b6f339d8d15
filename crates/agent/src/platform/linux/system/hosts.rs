//! `/etc/hosts`: `localhost` and the guest's own name. The file stays on the disk: what users write there is kept.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::platform::linux::system::line::write_line;

pub(super) const HOSTS: &str = "/etc/hosts";
/// Bytes of the largest file that is changed; one that is larger is somebody's list of names to block.
const MOST: u64 = 1 << 20;
/// Ends the lines that the agent puts in, so that the next name takes the place of the last, and images built in a guest have
/// none of them.
const MARK: &str = "# this guest";
/// Room for the own name, in characters. The name of a child takes no more of the file than its parent's, so that ext4 has
/// nothing to note in its journal: five seconds later each emulated child would translate and run all that brings it to
/// the disk, 13 ms.
const WIDTH: usize = 32;

/// Has the names resolve, and leaves everything else in the file as it is.
pub(super) fn set_own_name(name: &str) -> Result<(), String> {
    set_in(HOSTS, name)
}

fn set_in(path: &str, name: &str) -> Result<(), String> {
    let mut old = Vec::new();
    // A guest may have put a pipe or a terminal there.
    let file = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    match file {
        Ok(file) => {
            file.take(MOST + 1).read_to_end(&mut old).map_err(|error| format!("read {path}: {error}"))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("read {path}: {error}")),
    }
    if old.len() as u64 > MOST {
        return Err(format!("{path} has more than {MOST} bytes: the guest's own name is not put into it"));
    }
    let new = with_names(&old, name);
    if new == old { Ok(()) } else { write_line(path, &new) }
}

/// The text without what [`set_own_name`] put in; `None` if there is nothing of it.
pub(in crate::platform::linux) fn without_own_lines(text: &[u8]) -> Option<Vec<u8>> {
    let theirs = theirs(text);
    (theirs.len() != text.len()).then_some(theirs)
}

/// The lines that are not ours.
fn theirs(text: &[u8]) -> Vec<u8> {
    text.split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii_end().ends_with(MARK.as_bytes()))
        .collect::<Vec<_>>()
        .concat()
}

/// The text with lines for `localhost` and `name`, unless it has them.
fn with_names(old: &[u8], name: &str) -> Vec<u8> {
    let mut new = theirs(old);
    let (mut localhost_v4, mut localhost_v6, mut own) = (false, false, false);
    for line in new.split_inclusive(|byte| *byte == b'\n') {
        let text = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let mut words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let is_v6 = words.next().is_some_and(|address| address.contains(&b':'));
        for word in words {
            match (word == b"localhost", is_v6) {
                (true, false) => localhost_v4 = true,
                (true, true) => localhost_v6 = true,
                _ => {}
            }
            own |= !is_v6 && word == name.as_bytes();
        }
    }
    if new.last().is_some_and(|last| *last != b'\n') {
        new.push(b'\n');
    }
    if !localhost_v4 {
        new.extend_from_slice(format!("127.0.0.1\tlocalhost\t{MARK}\n").as_bytes());
    }
    if !localhost_v6 {
        new.extend_from_slice(format!("::1\tlocalhost ip6-localhost ip6-loopback\t{MARK}\n").as_bytes());
    }
    if !own {
        // As on every Debian: an address of the loopback network that is not that of `localhost`.
        new.extend_from_slice(format!("127.0.1.1\t{name:<WIDTH$}\t{MARK}\n").as_bytes());
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gets_all_names_and_a_new_name_replaces_the_old_one() {
        let first = with_names(b"", "one");
        let expected = format!(
            "127.0.0.1\tlocalhost\t# this guest\n::1\tlocalhost ip6-localhost ip6-loopback\t# this guest\n127.0.1.1\tone{}\t# this guest\n",
            " ".repeat(29)
        );
        assert_eq!(String::from_utf8_lossy(&first), expected);
        assert_eq!(with_names(&first, "one"), first);
        let second = with_names(&first, "two");
        assert_eq!(String::from_utf8_lossy(&second), expected.replace("one", "two"));
        // A child with another length of name writes over its parent's line in place.
        assert_eq!(with_names(&second, "a-longer-name").len(), second.len());
        assert_eq!(without_own_lines(&second), Some(Vec::new()));
    }

    #[test]
    fn lines_of_others_stay_whatever_they_hold() {
        let theirs = b"127.0.0.1 localhost two\n::1 localhost\n10.0.0.1\tdb \xff # one";
        let mut expected = theirs.to_vec();
        expected.push(b'\n');
        assert_eq!(with_names(theirs, "two"), expected);
        // A name in a comment resolves nothing.
        let before = expected.clone();
        expected.extend_from_slice(format!("127.0.1.1\t{:<32}\t# this guest\n", "one").as_bytes());
        assert_eq!(with_names(theirs, "one"), expected);
        assert_eq!(without_own_lines(&expected), Some(before));
        assert_eq!(without_own_lines(theirs), None);
    }

    #[test]
    fn a_file_is_made_and_a_huge_one_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let name = path.to_str().unwrap();
        set_in(name, "one").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), with_names(b"", "one"));
        let huge = vec![b'#'; usize::try_from(MOST).unwrap() + 1];
        std::fs::write(&path, &huge).unwrap();
        assert!(set_in(name, "one").unwrap_err().contains("more than"));
        assert_eq!(std::fs::read(&path).unwrap(), huge);
    }
}
