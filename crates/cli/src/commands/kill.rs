//! `microvm kill`: a signal for a VM or a process.

use clap::Args;
use microvm_types::{ProcessId, VmRef};
use serde_json::json;

use crate::context::Context;
use crate::error::CliError;

/// Send a signal to a VM, or to one of its processes
#[derive(Debug, Args)]
#[command(after_help = "\
Without a process: KILL ends the VM's machine at once, without a shutdown of the guest; the disk stays (as `stop
--force`). Any other signal goes to every command that was started by `exec`, `run` or the template and still runs,
with its children; the VM keeps running. Prints the ids of the processes, or the name of the VM that was ended.

Examples:
  microvm kill dev
  microvm kill -s HUP dev
  microvm kill -s TERM dev PROCESS")]
pub(crate) struct Kill {
    /// Name or id of the VM
    vm: VmRef,
    /// Id of a process, as `ps` shows it
    process: Option<ProcessId>,
    /// Signal: a name, with or without SIG, or a number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: u8,
}

impl Kill {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        if let Some(process) = &self.process {
            client.signal(&self.vm, process, self.signal).await?;
            context.output.value(&json!({ "processes": [process] }), process.as_str())?;
            return Ok(0);
        }
        let killed = client.kill_vm(&self.vm, self.signal).await?;
        let text = if killed.processes.is_empty() {
            killed.vm.name.to_string()
        } else {
            killed.processes.iter().map(ProcessId::as_str).collect::<Vec<_>>().join("\n")
        };
        context.output.value(&killed, &text)?;
        Ok(0)
    }
}

/// Names of signals with their numbers (signal(7), x86 and ARM).
const SIGNALS: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Reads `HUP`, `sighup` or `1`.
pub(crate) fn signal(text: &str) -> Result<u8, String> {
    if let Ok(number) = text.parse::<u8>()
        // 64 is Linux's last signal (signal(7)); those from 32 on have no names here.
        && (1..=64).contains(&number)
    {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = SIGNALS.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, number)| *number)
        .ok_or_else(|| format!("`{text}` is no signal: write for example HUP, SIGTERM or 15"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        for (text, number) in [("HUP", 1), ("sigterm", 15), ("9", 9), ("64", 64), ("SIGUSR1", 10)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "NOPE", "SIG"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
