//! Keys for ssh to VMs, below the root: nothing in `~/.ssh` is read or changed.
//!
//! `ssh/key` is the user's key. `ssh/vms/<id>` has the host key of one VM and a `known_hosts` with it; those of VMs of another
//! server stand in `ssh/remote/<id>`, since the server of this root does not know whether they live.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_types::{ErrorKind, VmId};

use crate::error::CliError;
use crate::remote;

/// Keys of one VM.
#[derive(Debug)]
pub(crate) struct SshKeys {
    /// Path of the user's private key.
    pub(crate) identity: Utf8PathBuf,
    /// The user's public key.
    pub(crate) public: String,
    /// The VM's private host key.
    pub(crate) host_key: Vec<u8>,
    /// Path of a file of known hosts with the VM's key.
    pub(crate) known_hosts: Utf8PathBuf,
}

/// Name of a VM's key in its file of known hosts.
pub(crate) fn alias(vm: &VmId) -> String {
    format!("microvm-{vm}")
}

impl SshKeys {
    /// The keys of a VM; those that are missing are made. Blocks while another process makes some.
    ///
    /// # Errors
    /// If the folder belongs to somebody else, or `ssh-keygen` is missing or fails.
    pub(crate) fn of(root: &Utf8Path, vm: &VmId) -> Result<Self, CliError> {
        let folder = root.join("ssh");
        let is_remote = std::env::var_os(remote::VARIABLE).is_some_and(|host| !host.is_empty());
        let vms = folder.join(if is_remote { "remote" } else { "vms" });
        let own = vms.join(vm.as_str());
        for path in [&folder, &vms, &own] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| CliError::file("making", path, &error))?;
        }
        // Two commands that make one key at once would leave the private half of one beside the public half of the
        // other.
        let _lock = lock(&folder.join("lock"))?;
        let (identity, host) = (folder.join("key"), own.join("host_key"));
        for (path, comment) in [(&identity, "microvm".to_owned()), (&host, alias(vm))] {
            if !path.exists() {
                generate(path, &comment)?;
            }
        }
        let read = |path: &Utf8Path| {
            std::fs::read_to_string(path).map_err(|error| CliError::file("reading", path, &error))
        };
        let known_hosts = own.join("known_hosts");
        let public = read(&host.with_extension("pub"))?;
        write(&known_hosts, &format!("{} {public}", alias(vm)))?;
        let host_key = read(&host)?.into_bytes();
        Ok(Self { public: read(&identity.with_extension("pub"))?, identity, host_key, known_hosts })
    }
}

fn lock(path: &Utf8Path) -> Result<File, CliError> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(|error| CliError::file("opening", path, &error))?;
    file.lock().map_err(|error| CliError::file("locking", path, &error))?;
    Ok(file)
}

/// Makes a pair of keys. The private one gets its name last, so that one whose name is there is whole.
fn generate(path: &Utf8Path, comment: &str) -> Result<(), CliError> {
    let part = path.with_extension("part");
    let public = part.with_extension("part.pub");
    for left in [&part, &public] {
        // Of a process that was killed.
        let _ = std::fs::remove_file(left);
    }
    let failed = |reason: String| {
        let detail =
            format!("no key could be made by ssh-keygen ({reason}): install the package openssh-client");
        CliError::new(ErrorKind::Unsupported, "ssh_keygen_failed", detail)
    };
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", part.as_str()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    for (from, to) in [(&public, path.with_extension("pub")), (&part, path.to_owned())] {
        std::fs::rename(from, &to).map_err(|error| CliError::file("renaming", from, &error))?;
    }
    Ok(())
}

/// Replaces a file by one with this text; whoever reads it meanwhile sees the old or the new one.
fn write(path: &Utf8Path, text: &str) -> Result<(), CliError> {
    let part = path.with_extension("part");
    let written = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| CliError::file("writing", path, &error))
}
