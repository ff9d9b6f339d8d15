//! Start commands: run once per boot, one after the other, in the background.

use std::sync::Arc;

use microvm_protocol::messages::{Exec, NotStarted};
use tokio::runtime::Handle;

use super::agent::{Agent, StartCommands};
use super::console::say;
use super::platform::Platform;
use super::process::shown_command;

/// Beginning of the ids of their processes.
pub(super) const START_COMMAND: &str = "startcommand";

/// Starts them, unless they ran since the boot already. The last one may be a server that never ends. Whether all have
/// started well is part of the guest's health; their output is kept like that of any other process.
pub(super) fn run<P: Platform>(agent: &Arc<Agent<P>>, commands: Vec<String>) {
    if commands.is_empty() || !agent.change_start_commands(StartCommands::NotGiven, StartCommands::Running) {
        return;
    }
    let task_agent = Arc::clone(agent);
    agent.spawn(&Handle::current(), async move {
        let agent = task_agent;
        let count = commands.len();
        for (number, command) in commands.into_iter().enumerate() {
            let shown = shown_command(std::slice::from_ref(&command));
            let request = Exec {
                // Known in advance, so that the host can attach to it: ids are 20 letters and digits.
                id: format!("{START_COMMAND}{number:08}"),
                command: agent.platform.shell(command),
                detach: true,
                ..Exec::default()
            };
            let process = match super::exec::start(&agent, request).await {
                Ok(process) => process,
                Err(error) => {
                    // There is no process that would tell it.
                    agent.set_not_started(NotStarted {
                        place: u32::try_from(number).unwrap_or(u32::MAX),
                        command: shown.0.concat(),
                        command_omitted: shown.1,
                        reason: error.message.clone(),
                    });
                    return failed(&agent, number, &error.message);
                }
            };
            // Starting makes the caller the first reader, and nobody reads here: without this a full buffer would
            // stop the command.
            process.lock().has_reader = false;
            process.notify();
            // Started is enough for the last one: it may be a server.
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

fn failed<P: Platform>(agent: &Agent<P>, number: usize, reason: &str) {
    say(&format!("start command {} failed: {reason}", number + 1));
    agent.change_start_commands(StartCommands::Running, StartCommands::Failed);
    // The last one may fail after all were called started.
    agent.change_start_commands(StartCommands::Done, StartCommands::Failed);
}
