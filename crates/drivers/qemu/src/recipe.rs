//! The command line of a machine for programs that start QEMU themselves.

use camino::Utf8PathBuf;

use crate::process::command_line::CommandLine;

/// Program and arguments of a QEMU, as its cage would show them, with everything that the arguments name.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The QEMU program.
    pub program: Utf8PathBuf,
    /// Its arguments: it pauses before the first instruction, or waits for a state.
    pub arguments: Vec<String>,
    /// Files and devices: path in the cage, path on the host.
    pub paths: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// Files that are open when it starts: descriptor, path on the host.
    pub files: Vec<(i32, Utf8PathBuf)>,
    /// Sockets that listen when it starts: descriptor, file name in the directory of the machine.
    pub sockets: Vec<(i32, String)>,
}

impl Recipe {
    pub(crate) fn of(program: Utf8PathBuf, line: CommandLine) -> Self {
        Self {
            program,
            arguments: line.arguments,
            paths: line.mounts.into_iter().map(|mount| (mount.target, mount.source)).collect(),
            files: line.files.into_iter().map(|file| (file.descriptor, file.path)).collect(),
            sockets: line.listeners.into_iter().map(|socket| (socket.descriptor, socket.name)).collect(),
        }
    }
}
