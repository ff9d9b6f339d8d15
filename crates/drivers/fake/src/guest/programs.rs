//! The few programs a fake guest has, just enough for tests and demonstrations.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use microvm_ports::hypervisor::MachineExit;
use microvm_types::files::FileChange;
use serde::{Deserialize, Serialize};

use crate::guest::process::{Process, Side};
use crate::guest::shell;
use crate::guest::system::GuestSystem;
use crate::guest::tree::{Body, node};

/// Surroundings of a program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Context {
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) directory: String,
    pub(crate) uid: u32,
    /// Run by a shell of its own process.
    pub(crate) nested: bool,
}

/// End of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Code(u8),
    Signal(u8),
}

/// Says something else at every look, as on Linux.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

/// Target of the standard output of a program.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Side(Side),
    File { path: String, append: bool },
}

const NAMES: &[&str] = &[
    "true", "false", "echo", "cat", "sh", "sleep", "env", "yes", "head", "pwd", "id", "uname", "hostname",
    "stty",
];

fn base(program: &str) -> &str {
    ["/usr/bin/", "/bin/"].iter().find_map(|directory| program.strip_prefix(directory)).unwrap_or(program)
}

/// True if there is a program of this name or path.
pub(crate) fn exists(program: &str) -> bool {
    NAMES.contains(&base(program))
}

/// Runs a command to its end with its output on standard output.
pub(crate) fn run<'a>(
    system: &'a Arc<GuestSystem>,
    process: &'a Arc<Process>,
    context: Context,
    command: Vec<String>,
) -> Pin<Box<dyn Future<Output = Ending> + Send + 'a>> {
    Box::pin(async move { run_to(system, process, &context, &command, &Target::Side(Side::Stdout)).await })
}

/// Runs a command to its end.
pub(crate) async fn run_to(
    system: &Arc<GuestSystem>,
    process: &Arc<Process>,
    context: &Context,
    command: &[String],
    target: &Target,
) -> Ending {
    let io = Io { system, process, target };
    let arguments: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
    let code = match (base(command.first().map_or("", String::as_str)), arguments.as_slice()) {
        ("true", _) => 0,
        ("false", _) => 1,
        ("echo", ["-n", words @ ..]) => io.say(&words.join(" ")).await,
        ("echo", words) => io.say(&format!("{}\n", words.join(" "))).await,
        ("pwd", []) => io.say(&format!("{}\n", context.directory)).await,
        ("id", ["-u"]) => io.say(&format!("{}\n", context.uid)).await,
        ("uname", []) => io.say("Linux\n").await,
        ("hostname", []) => io.say(&format!("{}\n", system.host_name())).await,
        ("stty", ["size"]) => match process.size() {
            Some(size) => io.say(&format!("{} {}\n", size.rows, size.columns)).await,
            None => io.complain("stty: standard input: not a terminal").await,
        },
        ("env", []) => {
            let lines = context.environment.iter().map(|(name, value)| format!("{name}={value}\n"));
            io.say(&lines.collect::<String>()).await
        }
        ("sleep", [seconds]) => {
            match seconds.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()) {
                Some(time) => {
                    tokio::time::sleep(time).await;
                    0
                }
                None => io.complain(&format!("sleep: {seconds}: not a time")).await,
            }
        }
        ("cat", []) => {
            while let Some(data) = process.read().await {
                io.put(&data).await;
            }
            0
        }
        ("cat", paths) => io.cat(context, paths).await,
        ("head", ["-c", count, "/dev/zero"]) => match count.parse::<u64>() {
            Ok(count) => io.repeat(b"\0", count).await,
            Err(_) => io.complain(&format!("head: {count}: not a number")).await,
        },
        ("yes", words) => {
            let line = if words.is_empty() { "y\n".to_owned() } else { format!("{}\n", words.join(" ")) };
            io.repeat(line.as_bytes(), u64::MAX).await
        }
        // The second form reads a script, to its mark, as the server sends one that is too long for an argument.
        ("sh", form @ ([] | ["-c", _]))
            if form.iter().skip(1).all(|script| script.starts_with("_microvm_script=$(cat)")) =>
        {
            let mut script = Vec::new();
            while let Some(data) = process.read().await {
                script.extend_from_slice(&data);
            }
            let script = String::from_utf8_lossy(&script);
            let script = script.strip_suffix("microvm-end-of-script").unwrap_or(&script).to_owned();
            return shell::run(system, process, context.clone(), &script, target).await;
        }
        // No process stands between here in any case.
        ("exec", [_, ..]) => return Box::pin(run_to(system, process, context, &command[1..], target)).await,
        // Looks for the shell of the user, as login shells are begun.
        ("sh", ["-c", script]) if script.trim_end().ends_with(r#"exec "$shell" -l"#) => {
            let shell = ["sh".to_owned()];
            return Box::pin(run_to(system, process, context, &shell, target)).await;
        }
        ("sh", ["-c", script, ..]) => {
            return shell::run(system, process, context.clone(), script, target).await;
        }
        (name, _) if NAMES.contains(&name) => {
            io.complain(&format!("{name}: the fake guest does not know these arguments")).await
        }
        (name, _) => {
            io.complain(&format!("sh: {name}: not found")).await;
            127
        }
    };
    Ending::Code(code)
}

struct Io<'a> {
    system: &'a Arc<GuestSystem>,
    process: &'a Arc<Process>,
    target: &'a Target,
}

impl Io<'_> {
    async fn say(&self, text: &str) -> u8 {
        self.put(text.as_bytes()).await
    }

    async fn complain(&self, text: &str) -> u8 {
        self.process.write(Side::Stderr, format!("{text}\n").as_bytes()).await;
        2
    }

    async fn put(&self, data: &[u8]) -> u8 {
        match self.target {
            Target::Side(side) => self.process.write(*side, data).await,
            Target::File { path, append } => {
                if let Err(error) = write(self.system, path, data, *append) {
                    return self.complain(&error.to_string()).await;
                }
            }
        }
        0
    }

    async fn repeat(&self, pattern: &[u8], count: u64) -> u8 {
        let block: Vec<u8> = pattern
            .iter()
            .copied()
            .cycle()
            .take(pattern.len() * (32_768 / pattern.len().max(1)).max(1))
            .collect();
        let mut left = count;
        while left > 0 {
            let now = left.min(block.len() as u64);
            self.put(&block[..usize::try_from(now).unwrap_or(block.len())]).await;
            left -= now;
        }
        0
    }

    async fn cat(&self, context: &Context, paths: &[&str]) -> u8 {
        for path in paths {
            if *path == RANDOM {
                self.say(&format!("{}\n", self.system.random_uuid())).await;
                continue;
            }
            let found =
                self.system.files().read(absolute(context, path).as_bytes()).map(|(_, data)| data.to_vec());
            match found {
                Ok(data) => {
                    self.put(&data).await;
                }
                Err(error) => return self.complain(&format!("cat: {error}")).await.min(1),
            }
        }
        0
    }
}

/// A path as seen from the working directory.
pub(crate) fn absolute(context: &Context, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", context.directory) }
}

/// Writes to a file; to the kernel's crash switch, ends the machine as a panic does.
fn write(
    system: &GuestSystem,
    path: &str,
    data: &[u8],
    append: bool,
) -> Result<(), microvm_ports::GuestError> {
    match path {
        "/dev/null" => return Ok(()),
        "/proc/sysrq-trigger" if data.first() == Some(&b'c') => {
            system.wants_end.send_replace(Some(MachineExit::GuestPanic));
            return Ok(());
        }
        _ => {}
    }
    let mut files = system.files();
    let parts = files.resolve(path.as_bytes(), true)?;
    let mut content = match files.read(path.as_bytes()) {
        Ok((_, old)) if append => old.to_vec(),
        _ => Vec::new(),
    };
    content.extend_from_slice(data);
    files.put(&parts, node(Body::File(content), 0o644))?;
    drop(files);
    system.changed(path.as_bytes(), FileChange::Modified);
    Ok(())
}
