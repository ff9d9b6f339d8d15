//! `microvm shell`: the shell of a user in a running VM.

use std::io::IsTerminal as _;

use clap::Args;
use microvm_api::exec::LOGIN_SHELL;
use microvm_types::VmRef;

use crate::commands::exec::{CommandOptions, Exec};
use crate::context::Context;
use crate::error::CliError;

/// Open a shell in a running VM
#[derive(Debug, Args)]
#[command(after_help = "\
The login shell of the user, with a terminal if standard input is one. Ctrl-P Ctrl-Q detaches from it.

Examples:
  microvm shell dev
  microvm shell dev -u postgres
  echo 'uname -a' | microvm shell dev

Exit code: that of the shell; 125 for errors of microvm.")]
pub(crate) struct Shell {
    /// Name or id of the VM
    vm: VmRef,
    #[command(flatten)]
    options: CommandOptions,
}

impl Shell {
    pub(crate) async fn run(mut self, context: &Context) -> Result<u8, CliError> {
        self.options.interactive = true;
        self.options.tty |= std::io::stdin().is_terminal() && !context.output.is_json();
        let command = LOGIN_SHELL.map(str::to_owned).to_vec();
        Exec::of(self.vm, self.options, command).run(context).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// The script runs in any POSIX shell; this host has one, and a user.
    #[test]
    fn a_shell_is_found() {
        let [program, arguments @ ..] = super::LOGIN_SHELL;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"echo \"found $0\"\n").unwrap();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(output.lines().any(|line| line.starts_with("found ") && line.ends_with("sh")), "{output}");
    }
}
