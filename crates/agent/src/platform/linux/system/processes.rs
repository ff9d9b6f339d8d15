//! All processes of the guest, from `/proc`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use microvm_protocol::messages::GuestProcess;

/// A process as `/proc` shows it.
pub(in crate::platform::linux) struct Listed {
    pub(in crate::platform::linux) session: u32,
    pub(in crate::platform::linux) message: GuestProcess,
}

/// Most bytes of a command line that are told.
const MOST_COMMAND: usize = 1024;

/// Everything that runs now. A process that ends meanwhile is left out.
///
/// # Errors
/// If `/proc` cannot be listed.
pub(in crate::platform::linux) fn all() -> std::io::Result<Vec<Listed>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse().ok()).and_then(read));
    }
    Ok(all)
}

/// The words of a command line, and how many bytes are left out. What is no UTF-8 is written as `\xNN`.
fn shown(arguments: &[u8]) -> (String, u64) {
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(arguments);
    let mut text = String::new();
    let mut told = 0;
    for chunk in arguments.utf8_chunks() {
        let room = MOST_COMMAND.saturating_sub(text.len());
        let valid = &chunk.valid()[..chunk.valid().floor_char_boundary(room)];
        text.extend(valid.chars().map(|letter| if letter == '\0' { ' ' } else { letter }));
        told += valid.len();
        if valid.len() < chunk.valid().len() || text.len() >= MOST_COMMAND {
            break;
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        told += chunk.invalid().len();
    }
    (text, (arguments.len() - told) as u64)
}

fn read(pid: u32) -> Option<Listed> {
    let directory = format!("/proc/{pid}");
    let uid = fs::metadata(&directory).ok()?.uid();
    let stat = fs::read(format!("{directory}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name stands in brackets and may hold anything; everything else comes after the last bracket.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let arguments = fs::read(format!("{directory}/cmdline")).unwrap_or_default();
    let (command, command_omitted) =
        if arguments.is_empty() { (format!("[{name}]"), 0) } else { shown(&arguments) };
    let page = rustix::param::page_size() as u64;
    // Clock ticks are 10 ms on every Linux of our architectures.
    let ticks = number(11)? + number(12)?;
    Some(Listed {
        session: u32::try_from(number(3)?).ok()?,
        message: GuestProcess {
            pid,
            parent: u32::try_from(number(1)?).ok()?,
            uid,
            state: u32::from(fields.first()?.chars().next()?),
            resident_bytes: number(21)? * page,
            cpu_ms: ticks * 10,
            command,
            command_omitted,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_a_command_line_is_counted() {
        assert_eq!(shown(b"sh\0-c\0\xff\0"), ("sh -c \\xff".to_owned(), 0));
        let long = [b"echo\0".as_slice(), &[b'x'; 5_000], b"\0"].concat();
        let (text, omitted) = shown(&long);
        assert_eq!((text.len(), omitted), (MOST_COMMAND, 5_005 - MOST_COMMAND as u64));
        let (text, omitted) = shown(&[0xff; 1_000]);
        assert_eq!(text.len() as u64 / 4 + omitted, 1_000);
    }

    #[test]
    fn this_process_is_listed() {
        let all = all().unwrap();
        assert!(all.iter().any(|listed| listed.message.pid == std::process::id()));
    }
}
