//! `microvm shell`: the shell of a user in a running VM.

use std::io::IsTerminal as _;

use clap::Args;
use microvm_types::VmRef;

use crate::commands::exec::{CommandOptions, Exec};
use crate::context::Context;
use crate::error::CliError;

/// The shell that `/etc/passwd` names for the user, else bash, else sh; as a login shell.
const FIND_SHELL: &str = r#"
user=$(id -u); shell=
while IFS=: read -r _ _ id _ _ _ path; do
  if [ "$id" = "$user" ]; then shell=$path; break; fi
done < /etc/passwd
case $shell in */nologin|*/false) shell= ;; esac
if [ ! -x "$shell" ]; then shell=$(command -v bash || command -v sh); fi
exec "$shell" -l
"#;

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
        let command = ["/bin/sh", "-c", FIND_SHELL].map(str::to_owned).to_vec();
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
        let mut child = Command::new("/bin/sh")
            .args(["-c", super::FIND_SHELL])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"echo \"found $0\"\n").unwrap();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(output.lines().any(|line| line.starts_with("found ") && line.ends_with("sh")), "{output}");
    }
}
