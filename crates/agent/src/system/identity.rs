//! Who this guest is in this epoch. Every part is done and confirmed by itself.

use std::fs;
use std::sync::Arc;

use microvm_protocol::messages::{Configure, Configured, Exec, FailureKind, PARTS, Part, SHARES_PART};

use crate::agent::{Agent, Place, StartCommands};
use crate::console::say;
use crate::exec::Defaults;
use crate::failure::{AgentError, AgentResult};
use crate::system::line::write_line;
use crate::system::{clock, hosts, shares};

/// Takes the identity over, which has to be one of a newer epoch than any before. `session_epoch`: that of the greeting.
pub(crate) async fn configure(
    agent: &Arc<Agent>,
    session_epoch: u64,
    identity: Configure,
) -> AgentResult<Configured> {
    // A host that is older than the field means the epoch it has greeted with.
    let epoch = if identity.epoch == 0 { session_epoch } else { identity.epoch };
    agent.epoch().enter(epoch)?;
    let in_guest = agent.place == Place::Guest;
    let mut problems: [Result<(), String>; PARTS.len()] = std::array::from_fn(|_| Ok(()));
    if in_guest {
        problems[0] = agent.entropy.add(&identity.entropy);
        problems[1] = set_clock(identity.wall_clock_ns);
        problems[2] = set_host_name(&identity.host_name);
        problems[3] = set_machine_id(&identity.machine_id);
    }
    if in_guest {
        make_working_directory(&identity.working_directory);
    }
    agent.set_defaults(Defaults {
        environment: identity.environment,
        user: identity.user,
        working_directory: identity.working_directory,
    });
    let shares = if in_guest && !identity.shares.is_empty() {
        Some(shares::mount_all(identity.shares).await)
    } else {
        None
    };
    run_start_commands(agent, identity.start_commands);
    let parts =
        PARTS.iter().copied().zip(problems).chain(shares.map(|result| (SHARES_PART, result))).map(
            |(name, problem)| Part { name: name.to_owned(), problem: problem.err().unwrap_or_default() },
        );
    Ok(Configured { parts: parts.collect() })
}

/// Sets the wall clock of a guest (see [`clock`]); an agent that runs beside other programs of a host leaves the host's alone.
///
/// # Errors
/// If the time is before 1970 or the kernel refuses it.
pub(crate) fn tell_time(agent: &Agent, nanoseconds: i64) -> AgentResult<()> {
    if nanoseconds <= 0 {
        return Err(AgentError::invalid("the time of day must be after 1970"));
    }
    match agent.place {
        Place::Guest => {
            set_clock(nanoseconds).map_err(|problem| AgentError::new(FailureKind::Internal, problem))
        }
        Place::Host => Ok(()),
    }
}

/// Makes the image's working directory where the image lacks it, as OCI runtimes do. What keeps it from being made is told
/// by the first command that is to run in it.
fn make_working_directory(directory: &str) {
    if directory.starts_with('/') && fs::metadata(directory).is_err() {
        let _ = fs::create_dir_all(directory);
    }
}

fn set_clock(nanoseconds: i64) -> Result<(), String> {
    if nanoseconds == 0 {
        return Ok(());
    }
    clock::set(nanoseconds)
}

fn set_host_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes()).map_err(|error| format!("set the host name: {error}"))?;
    write_line("/etc/hostname", format!("{name}\n"))?;
    // The file is the user's as much as ours: one that cannot be changed keeps no VM from being who it is.
    if let Err(problem) = hosts::set_own_name(name) {
        say(&format!("the guest's own name does not resolve: {problem}"));
    }
    Ok(())
}

fn set_machine_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Ok(());
    }
    let line = format!("{id}\n");
    write_line("/etc/machine-id", &line)?;
    let bus = "/var/lib/dbus/machine-id";
    // Usually a link to the other one.
    if fs::symlink_metadata(bus).is_ok_and(|found| found.is_file()) {
        write_line(bus, &line)?;
    }
    Ok(())
}

/// Starts the start commands, once per boot, one after the other in the background: the last one may well be a server
/// that never ends. Whether all have started well is part of the guest's health; their output is kept like that of any
/// other process.
fn run_start_commands(agent: &Arc<Agent>, commands: Vec<String>) {
    if commands.is_empty() || !agent.change_start_commands(StartCommands::NotGiven, StartCommands::Running) {
        return;
    }
    let task_agent = Arc::clone(agent);
    agent.spawn(&tokio::runtime::Handle::current(), async move {
        let agent = task_agent;
        let count = commands.len();
        for (number, command) in commands.into_iter().enumerate() {
            let request = Exec {
                // Known in advance, so that the host can attach to it: ids are 20 letters and digits.
                id: format!("startcommand{number:08}"),
                command: vec!["/bin/sh".to_owned(), "-c".to_owned(), command],
                detach: true,
                ..Exec::default()
            };
            let process = match crate::exec::start(&agent, request).await {
                Ok(process) => process,
                Err(error) => return failed(&agent, number, &error.message),
            };
            process.lock().has_reader = false;
            process.notify();
            if number + 1 == count {
                agent.change_start_commands(StartCommands::Running, StartCommands::Done);
            }
            let mut changed = process.changed.subscribe();
            let exit = loop {
                if let Some(exit) = process.lock().exit {
                    break exit;
                }
                if changed.changed().await.is_err() {
                    return;
                }
            };
            if exit.code != Some(0) {
                return failed(&agent, number, &format!("it ended with {exit:?}"));
            }
        }
    });
}

fn failed(agent: &Agent, number: usize, reason: &str) {
    say(&format!("start command {} failed: {reason}", number + 1));
    agent.change_start_commands(StartCommands::Running, StartCommands::Failed);
    agent.change_start_commands(StartCommands::Done, StartCommands::Failed);
}
