//! `microvm ssh-config` and its proxy command: ssh over the channel of a VM's agent.

use clap::Args;
use microvm_client::{Client, WriteFile};
use microvm_types::exec::ExecRequest;
use microvm_types::files::FileOwner;
use microvm_types::{ErrorKind, VmRef};
use serde_json::json;

use crate::commands::exec::{Whose, to_its_end};
use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::session::Wiring;
use crate::settings::Settings;
use crate::ssh_keys::{self, SshKeys};
use crate::{remote, variables, visible};

/// Directory of keys in a guest.
const FOLDER: &str = "/run/microvm-ssh";
/// Exit code of the script where a guest has no sshd (EX_UNAVAILABLE of sysexits.h).
const NO_SSHD: u8 = 69;
/// Finds the guest's sshd. It needs its directory for separated privileges, and PAM where the image has its settings:
/// without them an account without a password counts as locked.
const START: &str = r#"
sshd=$(PATH=/usr/sbin:/usr/local/sbin:/sbin:$PATH command -v sshd) || exit 69
mkdir -p /run/sshd
pam=no; [ -e /etc/pam.d/sshd ] && pam=yes
exec "$sshd" -i -e -f /dev/null -o UsePAM=$pam -o HostKey=/run/microvm-ssh/host_key \
  -o AuthorizedKeysFile=/run/microvm-ssh/authorized_keys -o StrictModes=no -o PasswordAuthentication=no \
  -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password -o PrintMotd=no -o LogLevel=ERROR \
  -o Subsystem="sftp internal-sftp" -o "AcceptEnv=LANG LC_*"
"#;

/// Print a configuration for ssh, rsync, scp and editors
#[derive(Debug, Args)]
#[command(after_help = "\
ssh reaches the VM through the channel of its agent: the VM needs no network, but an sshd in its image (package
openssh-server). The keys are below the root directory; ~/.ssh is neither read nor changed.

Examples:
  microvm ssh-config dev > dev.conf; ssh -F dev.conf dev
  rsync -e 'ssh -F dev.conf' -a ./src dev:/root/
  microvm ssh-config dev --user me >> ~/.ssh/config      for editors")]
pub(crate) struct SshConfig {
    /// Name or id of the VM
    vm: VmRef,
    /// User in the guest
    #[arg(short, long, default_value = "root", value_parser = word)]
    user: String,
    /// Name to call the VM by [default: its name]
    #[arg(long, value_parser = word)]
    alias: Option<String>,
}

/// Connect standard input and output with an sshd in a VM
#[derive(Debug, Args)]
pub(crate) struct SshProxy {
    /// Name or id of the VM
    vm: VmRef,
}

/// A word that stands in a configuration without quotes.
fn word(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err("it consists of letters, digits, `.`, `_` and `-`".to_owned())
}

/// An argument of the proxy command: quoted for the shell, and `%` doubled for ssh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%"))
}

impl SshConfig {
    pub(crate) async fn run(self, context: &Context, settings: &Settings) -> Result<u8, CliError> {
        let vm = context.client.vm(&self.vm).await?;
        let keys = SshKeys::of(&settings.root, &vm.id)?;
        let program = std::env::current_exe()
            .map_err(|error| CliError::file("finding", "this program", &error))?
            .into_os_string()
            .into_string()
            .map_err(|_| CliError::invalid("path_invalid", "the path of this program is not UTF-8"))?;
        let host = variables::filled(remote::VARIABLE)?;
        let host =
            host.map_or_else(String::new, |host| format!("env {}={} ", remote::VARIABLE, quoted(&host)));
        let proxy = format!(
            "{host}{} --root {} ssh-proxy {}",
            quoted(&program),
            quoted(settings.root.as_str()),
            vm.id
        );
        let alias = self.alias.unwrap_or_else(|| vm.name.to_string());
        let config = format!(
            "Host {alias}\n  HostName {}\n  HostKeyAlias {}\n  User {}\n  ProxyCommand {proxy}\n  IdentityFile \"{}\"\n  \
             IdentitiesOnly yes\n  UserKnownHostsFile \"{}\"\n  StrictHostKeyChecking yes\n",
            vm.name,
            ssh_keys::alias(&vm.id),
            self.user,
            keys.identity,
            keys.known_hosts,
        );
        if context.output.is_json() {
            context.output.json(&json!({ "vm": vm.name, "host": alias, "config": config }))?;
        } else {
            context.output.line(&visible::lines(config.trim_end()))?;
        }
        Ok(0)
    }
}

impl SshProxy {
    pub(crate) async fn run(self, context: &Context, settings: &Settings) -> Result<u8, CliError> {
        let client = &context.client;
        let found = client.vm(&self.vm).await?;
        let vm = VmRef::from(found.id.clone());
        let keys = SshKeys::of(&settings.root, &found.id)?;
        // At every connection: `/run` is in the guest's memory, and empty after each boot.
        send(client, &vm, "host_key", 0o600, keys.host_key).await?;
        send(client, &vm, "authorized_keys", 0o644, keys.public.into_bytes()).await?;
        let mut interrupts = Interrupts::new()?;
        let session = client.exec(&vm, &request()).await.map_err(CliError::not_started)?;
        let wiring = Wiring { stdin: true, terminal: false, collect: false, detach_keys: None };
        let code = to_its_end(context, &vm, session, wiring, &mut interrupts, Whose::Ours).await?;
        if code == NO_SSHD {
            let detail = format!(
                "{} has no sshd: add the package openssh-server to its image (`packages` of a recipe)",
                found.name
            );
            return Err(CliError::new(ErrorKind::Unsupported, "no_sshd", detail));
        }
        Ok(code)
    }
}

fn request() -> ExecRequest {
    let command = ["/bin/sh", "-c", START].map(str::to_owned).to_vec();
    ExecRequest { command, stdin: true, user: Some("root".to_owned()), ..ExecRequest::default() }
}

async fn send(client: &Client, vm: &VmRef, name: &str, mode: u32, text: Vec<u8>) -> Result<(), CliError> {
    let owner = Some(FileOwner::Named("root".to_owned()));
    let options = WriteFile { mode: Some(mode), owner, parents: true, ..WriteFile::default() };
    let data = futures_util::stream::iter([Ok(bytes::Bytes::from(text))]);
    client.write_file(vm, format!("{FOLDER}/{name}").as_bytes(), &options, data).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_configuration_end_nothing() {
        assert_eq!(quoted("/a b/50%'s"), r"'/a b/50%%'\''s'");
        assert!(word("me.x_1-2").is_ok());
        for wrong in ["", "-x", "a b", "a\nHost *", "\"", "a*"] {
            assert!(word(wrong).is_err(), "{wrong}");
        }
    }
}
