//! `microvm login` and `logout`: passwords of registries.

use std::io::{IsTerminal as _, Read as _};

use clap::Args;
use microvm_api::image::RegistryLogin;
use serde::Serialize;

use crate::docker_config::{DockerConfig, Kept};
use crate::error::CliError;
use crate::format::Format;
use crate::notice::say;
use crate::output::Output;

/// Most bytes of a password.
const PASSWORD_MAX: u64 = 64 << 10;

/// Keep user and password of a registry
#[derive(Debug, Args)]
#[command(after_help = "\
They are kept where docker keeps them: in $DOCKER_CONFIG/config.json or ~/.docker/config.json, with mode 0600, or with the credential helper
that is named there (credHelpers, credsStore). `image pull` uses them, also those of `docker login`, and sends them with the request alone.
Nothing is asked of the registry now: a wrong password shows at the next pull.

Example:
  microvm login registry.example.com -u me --password-stdin < password.txt")]
pub(crate) struct Login {
    /// Host of the registry, with its port
    registry: String,
    /// User
    #[arg(short, long)]
    username: String,
    /// Read the password, or an access token, from standard input
    #[arg(long, required = true)]
    password_stdin: bool,
}

/// Forget user and password of a registry
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Host of the registry, with its port
    registry: String,
}

/// A login that was kept or forgotten.
#[derive(Serialize)]
struct Done<'a> {
    registry: &'a str,
    file: &'a str,
}

fn config() -> Result<DockerConfig, CliError> {
    let none = || {
        CliError::invalid(
            "no_home",
            "neither DOCKER_CONFIG nor HOME is set, so there is no place for passwords",
        )
    };
    DockerConfig::find()?.ok_or_else(none)
}

fn check(registry: &str) -> Result<(), CliError> {
    if registry.is_empty() || registry.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(CliError::invalid(
            "registry_invalid",
            "a registry is a host, with a port or without: host[:port]",
        ));
    }
    Ok(())
}

impl Login {
    pub(crate) async fn run(self, format: Format) -> Result<u8, CliError> {
        let Self { registry, username, password_stdin: _ } = self;
        check(&registry)?;
        if username.is_empty() || username.contains(':') {
            return Err(CliError::invalid(
                "user_invalid",
                "--username: a user has at least one character and no colon",
            ));
        }
        if std::io::stdin().is_terminal() {
            say("reading the password from the terminal, which shows it; end with Ctrl-D, or pipe it in");
        }
        let mut password = String::new();
        let read = std::io::stdin().lock().take(PASSWORD_MAX + 1).read_to_string(&mut password);
        read.map_err(|error| CliError::file("reading", "the password", &error))?;
        let password = password.trim_end_matches(['\n', '\r']);
        if password.is_empty() || password.len() as u64 > PASSWORD_MAX || password.contains(char::is_control)
        {
            return Err(CliError::invalid(
                "password_invalid",
                "standard input has no password of one line: nothing was kept",
            ));
        }
        let login = RegistryLogin { user: username, password: password.to_owned() };
        // Read now: another program may have written it while the password was waited for.
        let mut config = config()?;
        let kept = config.keep(&registry, &login).await?;
        let output = Output::new(format);
        if output.is_json() {
            output.json(&Done { registry: &registry, file: config.path.as_str() })?;
        } else if kept == Kept::File {
            say(&format!("the login at {registry} is kept in {}, which is not encrypted", config.path));
        } else {
            say(&format!("the login at {registry} is kept by the credential helper"));
        }
        Ok(0)
    }
}

impl Logout {
    pub(crate) async fn run(self, format: Format) -> Result<u8, CliError> {
        check(&self.registry)?;
        let mut config = config()?;
        if !config.forget(&self.registry).await? {
            let why = format!("there is no login at {} in {}", self.registry, config.path);
            return Err(CliError::new(microvm_types::ErrorKind::NotFound, "login_not_found", why));
        }
        let output = Output::new(format);
        if output.is_json() {
            output.json(&Done { registry: &self.registry, file: config.path.as_str() })?;
        }
        Ok(0)
    }
}
