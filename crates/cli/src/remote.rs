//! Servers elsewhere: `MICROVM_HOST`.

use microvm_client::Client;

use crate::error::CliError;
use crate::variables;

/// Variable that names the server.
pub(crate) const VARIABLE: &str = "MICROVM_HOST";

/// Starts ssh so that Ctrl-C and Ctrl-\ of the terminal are not its own: this program hears them, and still needs the connection to delete
/// what it made. In a process group of its own ssh could not ask for a password.
///
/// A command that waits for nothing dies of Ctrl-C at once, and ssh with it.
const DEAF: [&str; 4] = [
    "sh",
    "-c",
    "trap '' INT QUIT; command -v setpriv > /dev/null && exec setpriv --pdeathsig TERM \"$@\"; exec \"$@\"",
    "sh",
];

/// The client of the server that `MICROVM_HOST` names, if it is set.
///
/// # Errors
/// If it is set to something that is no address of a server.
pub(crate) fn client() -> Result<Option<Client>, CliError> {
    let Some(address) = variables::filled(VARIABLE)? else { return Ok(None) };
    let invalid = |reason: &str| {
        let detail = format!(
            "{VARIABLE}: `{address}` {reason}: write ssh://[user@]host[:port] or unix:///path/of/api.sock"
        );
        CliError::invalid("host_invalid", detail)
    };
    if let Some(path) = address.strip_prefix("unix://") {
        return if path.starts_with('/') { Ok(Some(Client::new(path))) } else { Err(invalid("is no path")) };
    }
    let rest = address.strip_prefix("ssh://").ok_or_else(|| invalid("begins with no known scheme"))?;
    through_ssh(rest).map(|words| Some(Client::through(words))).map_err(invalid)
}

/// The command that leads to the server of another host.
fn through_ssh(destination: &str) -> Result<Vec<String>, &'static str> {
    let destination = destination.strip_suffix('/').unwrap_or(destination);
    if destination.contains('/') {
        return Err("has a path");
    }
    let (user, place) = match destination.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, destination),
    };
    // An address of IPv6 stands in brackets.
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    // ssh takes a word that begins with a dash for an option, and options run programs.
    if host.is_empty() || user == Some("") || destination.starts_with('-') || host.starts_with('-') {
        return Err("names no host");
    }
    // No terminal: it would change bytes on their way.
    let mut words: Vec<String> = DEAF.into_iter().chain(["ssh", "-T"]).map(str::to_owned).collect();
    if let Some(port) = port {
        let port: u16 = port.parse().map_err(|_| "has no valid port")?;
        words.extend(["-p".to_owned(), port.to_string()]);
    }
    let host = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
    words.extend(["--".to_owned(), host]);
    words.extend(["microvm", "dial-stdio"].map(str::to_owned));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_commands_of_ssh() {
        let words = |text: &str| through_ssh(text).map(|words| words[DEAF.len()..].join(" "));
        assert_eq!(words("host").as_deref(), Ok("ssh -T -- host microvm dial-stdio"));
        assert_eq!(words("me@host:2222/").as_deref(), Ok("ssh -T -p 2222 -- me@host microvm dial-stdio"));
        assert_eq!(words("me@[::1]:22").as_deref(), Ok("ssh -T -p 22 -- me@::1 microvm dial-stdio"));
        for wrong in ["", "-oProxyCommand=x", "me@-oProxyCommand=x", "@host", "host:", "host:x", "host/path"]
        {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
