//! Report of what a copy left out.

use microvm_client::copy::Moved;
use microvm_types::files::LeftOut;

use crate::notice::say;
use crate::visible;

/// Exit code of a copy that is not complete.
const INCOMPLETE: u8 = 1;

/// Lists on standard error what was not copied; returns the exit code of the copy.
pub(crate) fn tell(moved: &Moved) -> u8 {
    report(&moved.left_out, moved.left_out_is_complete)
}

/// The same for an archive; `None`: the agent does not tell.
pub(crate) fn tell_of_archive(left_out: Option<&LeftOut>) -> u8 {
    report(left_out.unwrap_or(&LeftOut::default()), left_out.is_some())
}

fn report(left_out: &LeftOut, is_complete: bool) -> u8 {
    list(left_out);
    if !is_complete {
        say(
            "the VM was started by an older version, whose agent does not tell which files it leaves out: if it may \
             have sockets, FIFOs or devices there, stop and start it",
        );
    }
    if left_out.count > 0 { INCOMPLETE } else { 0 }
}

/// Lists on standard error what is not in an archive.
pub(crate) fn list(left_out: &LeftOut) {
    let LeftOut { count, entries } = left_out;
    for entry in entries {
        say(&format!("left out {}: {}", visible::line(&entry.path), visible::line(&entry.reason)));
    }
    let more = count.saturating_sub(entries.len() as u64);
    if more > 0 {
        say(&format!("left out {more} more entries"));
    }
}
