//! From a request to the arguments of system calls.

use std::collections::BTreeMap;
use std::ffi::CString;

use microvm_protocol::messages::Exec;

use super::users::{self, User};
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::Defaults;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program, directory, user and environment of a start.
#[derive(Debug)]
pub(in crate::platform::linux) struct Plan {
    /// Paths to try, in order.
    pub(in crate::platform::linux) candidates: Vec<CString>,
    pub(in crate::platform::linux) arguments: Vec<CString>,
    pub(in crate::platform::linux) environment: Vec<CString>,
    /// Working directories to try, in order.
    pub(in crate::platform::linux) directories: Vec<CString>,
    /// The first of them is the image's: it is left only if the user may not enter it.
    pub(in crate::platform::linux) insists: bool,
    pub(in crate::platform::linux) user: User,
}

/// Resolves a request.
///
/// # Errors
/// If it names no program, an unknown user, or a text with a NUL byte.
pub(in crate::platform::linux) fn plan(request: &Exec, defaults: &Defaults) -> AgentResult<Plan> {
    let program = request.command.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| AgentError::invalid("there is no command to run"))?;
    let user = users::resolve(if request.user.is_empty() { &defaults.user } else { &request.user })?;
    let mut variables = BTreeMap::new();
    variables.insert("PATH", DEFAULT_PATH);
    variables.insert("HOME", &*user.home);
    variables.insert("USER", &*user.name);
    variables.insert("LOGNAME", &*user.name);
    if !user.shell.is_empty() {
        variables.insert("SHELL", &*user.shell);
    }
    if request.terminal.is_some() {
        variables.insert("TERM", "xterm-256color");
    }
    for variable in defaults.environment.iter().chain(&request.environment) {
        check_name(&variable.name)?;
        variables.insert(&*variable.name, &*variable.value);
    }
    // The path that the command will see, and not the agent's: `env PATH=…` finds what a shell in there would.
    let path = variables.get("PATH").copied().unwrap_or(DEFAULT_PATH);
    let candidates = if program.contains('/') {
        vec![text(program, "the program")?]
    } else {
        path.split(':')
            .map(|directory| if directory.is_empty() { "." } else { directory })
            .map(|directory| text(&format!("{directory}/{program}"), "the program"))
            .collect::<AgentResult<_>>()?
    };
    let directories = directories(request, defaults, &user)?;
    let insists = request.working_directory.is_empty() && !defaults.working_directory.is_empty();
    Ok(Plan {
        candidates,
        arguments: request
            .command
            .iter()
            .map(|word| text(word, "an argument"))
            .collect::<AgentResult<_>>()?,
        environment: variables
            .iter()
            .map(|(name, value)| text(&format!("{name}={value}"), "a variable"))
            .collect::<AgentResult<_>>()?,
        directories,
        insists,
        user,
    })
}

/// Working directories to try: only the one that the request names; else the image's, the user's home, and `/`, which every user
/// may enter.
fn directories(request: &Exec, defaults: &Defaults, user: &User) -> AgentResult<Vec<CString>> {
    let below = |base: &str, directory: &str| {
        let whole =
            if directory.starts_with('/') { directory.to_owned() } else { format!("{base}/{directory}") };
        text(&whole, "the working directory")
    };
    if !request.working_directory.is_empty() {
        return Ok(vec![below(&user.home, &request.working_directory)?]);
    }
    // OCI runtimes take one that is relative as below the root.
    let wanted = [&*defaults.working_directory, &*user.home, "/"];
    wanted
        .into_iter()
        .filter(|directory| !directory.is_empty())
        .map(|directory| below("", directory))
        .collect()
}

fn check_name(name: &str) -> AgentResult<()> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(AgentError::invalid(format!("`{name}` cannot be the name of a variable")));
    }
    Ok(())
}

fn text(text: &str, what: &str) -> AgentResult<CString> {
    CString::new(text).map_err(|_| AgentError::invalid(format!("{what} contains a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(wanted: &str, default: &str) -> Vec<String> {
        let request = Exec {
            command: vec!["true".into()],
            user: "4242".into(),
            working_directory: wanted.into(),
            ..Exec::default()
        };
        let defaults = Defaults { working_directory: default.into(), ..Defaults::default() };
        let plan = plan(&request, &defaults).unwrap();
        plan.directories.iter().map(|directory| directory.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn only_a_directory_that_was_asked_for_is_insisted_on() {
        assert_eq!(tried("/srv", "/app"), ["/srv"]);
        assert_eq!(tried("", "/app"), ["/app", "/", "/"]);
        assert_eq!(tried("", ""), ["/", "/"]);
    }

    #[test]
    fn a_relative_directory_of_an_image_is_below_the_root() {
        assert_eq!(tried("", "srv/app"), ["/srv/app", "/", "/"]);
    }
}
