//! `microvm`: the command line, always a client of a server; and `microvm serve`, that server.
//!
//! ```text
//!  arguments ─▶ commands/<verb> ─▶ client ─▶ socket ─▶ server (started in the background if none listens)
//! ```
//!
//! Data goes to standard output, everything else to standard error. The drivers are wired in one place, `wiring`.

mod arguments;
mod autostart;
mod bounds;
mod commands;
mod context;
mod credential_helper;
mod descriptors;
mod detach;
mod dispatch;
mod docker_config;
mod dockerfile;
mod duration;
mod environment;
mod error;
mod flags;
mod format;
mod forwarding;
mod habits;
mod heap;
mod interrupts;
mod left_out;
mod leftovers;
mod limits;
mod notice;
mod output;
mod pairs;
mod place;
mod progress;
mod recipe;
mod remedy;
mod remote;
mod root;
mod session;
mod settings;
mod ssh_keys;
mod template_files;
mod terminal;
mod variables;
mod visible;
mod wiring;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::Arguments;

fn main() -> ExitCode {
    // The server starts this same program as the supervisor of each VMM, and this must be told before anything else.
    if std::env::args_os().nth(1).is_some_and(|first| first == microvm_confinement::SUPERVISOR_COMMAND) {
        return microvm_confinement::supervise();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(mut error) => {
            // A word that is no text is no verb.
            let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
            let verbs = verbs(words);
            habits::explain(&mut error, &verbs);
            return error::usage(&error, verbs.first().map(String::as_str));
        }
    };
    let format = arguments.output;
    let outcome = dispatch::dispatch(arguments);
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => error.report(format),
    }
}

/// The verb of a command line and what may be a verb behind it: the first two words that are neither options nor values of those that
/// may stand before.
fn verbs(mut words: impl Iterator<Item = String>) -> Vec<String> {
    let mut verbs = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--root" | "--output" | "-o" => drop(words.next()),
            option if option.starts_with('-') => {}
            _ => verbs.push(word),
        }
        if verbs.len() == 2 {
            break;
        }
    }
    verbs
}
