//! The agent's ends of a command's streams.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use microvm_protocol::messages::Terminal;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Both ends of everything, before the start.
pub(in crate::platform::linux) struct Streams {
    /// The command's ends.
    pub(in crate::platform::linux) child: [OwnedFd; 3],
    /// Our ends.
    pub(in crate::platform::linux) stdin: Option<OwnedFd>,
    pub(in crate::platform::linux) stdout: OwnedFd,
    pub(in crate::platform::linux) stderr: Option<OwnedFd>,
}

fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Our end only: the command's end blocks, as programs expect.
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

/// Pipes, with an empty standard input unless one will be sent.
pub(in crate::platform::linux) fn pipes(stdin: bool) -> io::Result<Streams> {
    let (child_stdin, stdin) = if stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (read, Some(write))
    } else {
        (rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
    };
    let (stdout, child_stdout) = output_pipe()?;
    let (stderr, child_stderr) = output_pipe()?;
    Ok(Streams { child: [child_stdin, child_stdout, child_stderr], stdin, stdout, stderr: Some(stderr) })
}

/// A pseudo-terminal that belongs to `uid`.
pub(in crate::platform::linux) fn terminal(size: Terminal, uid: u32) -> io::Result<Streams> {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&main)?;
    unlockpt(&main)?;
    resize(&main, size)?;
    let name = rustix::pty::ptsname(&main, Vec::new())?;
    let side = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // Fails without the right to; then it is the agent's own user anyway.
    let _ = rustix::fs::fchown(&side, Some(rustix::process::Uid::from_raw(uid)), None);
    rustix::io::ioctl_fionbio(&main, true)?;
    Ok(Streams {
        child: [side.try_clone()?, side.try_clone()?, side],
        stdin: Some(main.try_clone()?),
        stdout: main,
        stderr: None,
    })
}

/// Gives a terminal a new size.
pub(in crate::platform::linux) fn resize(terminal: &OwnedFd, size: Terminal) -> io::Result<()> {
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX).max(1);
    let size = Winsize { ws_row: clamp(size.rows), ws_col: clamp(size.columns), ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.as_fd(), size)?;
    Ok(())
}
