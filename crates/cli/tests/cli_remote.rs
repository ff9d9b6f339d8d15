//! Servers elsewhere (`MICROVM_HOST`) and configurations for ssh, beside a whole server on fakes. Needs no hypervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../server/tests/support/mod.rs"]
mod service;

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

use service::Server;

/// Stands for ssh: keeps its arguments, and runs the command here as the other host would.
const SSH: &str = r#"#!/bin/sh
echo "$@" >> "$LOG"
[ -e "$LOG.broken" ] && { echo "ssh: no route to host" >&2; exit 255; }
while [ "$1" != -- ]; do shift; done
shift 3
unset MICROVM_HOST
MICROVM_ROOT=$REMOTE_ROOT exec "$PROGRAM" "$@"
"#;

struct There {
    server: Server,
    folder: tempfile::TempDir,
}

impl There {
    async fn start() -> Self {
        let there = Self { server: service::start().await, folder: tempfile::tempdir().unwrap() };
        let ssh = there.folder.path().join("ssh");
        std::fs::write(&ssh, SSH).unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
        there
    }

    /// The program with this address of a server, and a root of its own that nothing is in.
    fn command(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        let path = format!("{}:{}", self.folder.path().display(), std::env::var("PATH").unwrap());
        command
            .args(arguments)
            .env("PATH", path)
            .env("HOME", self.folder.path())
            .env("LOG", self.folder.path().join("log"))
            .env("PROGRAM", env!("CARGO_BIN_EXE_microvm"))
            .env("REMOTE_ROOT", &self.server.root)
            .env("MICROVM_ROOT", self.folder.path().join("here"))
            .env("MICROVM_HOST", host)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    async fn run(&self, host: &str, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(host, arguments);
        let input = input.to_owned();
        let run = move || {
            let mut child = command.spawn().unwrap();
            // Whoever reads no input closes it.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            child.wait_with_output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    async fn must(&self, host: &str, arguments: &[&str], input: &str) -> String {
        let output = self.run(host, arguments, input).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_elsewhere_is_reached_through_ssh() {
    let there = There::start().await;
    let host = "ssh://me@there:2222";
    assert_eq!(there.must(host, &["create", "--name", "dev"], "").await, "dev\n");
    let large = "0123456789abcdef".repeat(100_000);
    assert_eq!(there.must(host, &["exec", "-i", "dev", "cat"], &large).await, large);
    let (file, back) = (there.folder.path().join("file"), there.folder.path().join("back"));
    std::fs::write(&file, &large).unwrap();
    there.must(host, &["cp", file.to_str().unwrap(), "dev:/file"], "").await;
    there.must(host, &["cp", "dev:/file", back.to_str().unwrap()], "").await;
    assert_eq!(std::fs::read_to_string(&back).unwrap(), large);
    assert_eq!(there.run(host, &["run", "sh", "-c", "exit 3"], "").await.status.code(), Some(3));
    let calls = std::fs::read_to_string(there.folder.path().join("log")).unwrap();
    assert!(calls.lines().all(|line| line == "-T -p 2222 -- me@there microvm dial-stdio"), "{calls}");
    assert!(!there.folder.path().join("here").exists(), "a root was made here");
    // A socket of this host.
    let socket = format!("unix://{}", microvm_server::socket_path(&there.server.root));
    assert!(there.must(&socket, &["ls"], "").await.contains("dev"));
    for (host, code, word) in [
        ("tcp://there", 101, "no known scheme"),
        ("ssh://", 101, "names no host"),
        ("ssh://there:x", 101, "no valid port"),
        ("unix:///no/such/socket", 106, "no server listens"),
    ] {
        let output = there.run(host, &["ls"], "").await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && told.contains(word), "{host}: {told}");
    }
    std::fs::write(there.folder.path().join("log.broken"), "").unwrap();
    let output = there.run(host, &["ls"], "").await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(106) && told.contains("no route to host"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_of_the_terminal_leaves_ssh_alone_until_the_vm_is_deleted() {
    let there = There::start().await;
    let mut command = there.command("ssh://there", &["run", "sh", "-c", "echo begun; sleep 1000"]);
    // A terminal sends the signal to all of its foreground group: to the program and to what it started.
    let mut child = command.process_group(0).stdin(Stdio::null()).spawn().unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let read = move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), "begun\n");
    let client = microvm_client::Client::new(microvm_server::socket_path(&there.server.root));
    let vms = async || client.list_vms(&microvm_client::VmQuery::default()).await.unwrap().vms;
    assert_eq!(vms().await.len(), 1);
    let group = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(vms().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_for_ssh_names_keys_below_the_root() {
    let there = There::start().await;
    let socket = format!("unix://{}", microvm_server::socket_path(&there.server.root));
    there.must(&socket, &["create", "--name", "dev"], "").await;
    let ask = ["ssh-config", "dev", "--user", "me", "--alias", "box"];
    // Several at once make one key.
    let all = futures_util::future::join_all((0..4).map(|_| there.must(&socket, &ask, ""))).await;
    assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
    let file = there.folder.path().join("config");
    std::fs::write(&file, &all[0]).unwrap();
    let seen = Command::new("/usr/bin/ssh").arg("-G").arg("-F").arg(&file).arg("box").output().unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    let value = |key: &str| {
        let line = seen.lines().find(|line| line.starts_with(&format!("{key} ")));
        line.unwrap_or_else(|| panic!("no {key}: {seen}"))[key.len() + 1..].to_owned()
    };
    assert_eq!((value("user"), value("identitiesonly")), ("me".to_owned(), "yes".to_owned()));
    let proxy = value("proxycommand");
    assert!(proxy.contains(" ssh-proxy ") && proxy.contains("MICROVM_HOST='unix:///"), "{proxy}");
    let ssh = there.folder.path().join("here/ssh");
    assert_eq!(value("identityfile"), ssh.join("key").to_str().unwrap());
    for (name, mode) in [("", 0o700), ("key", 0o600)] {
        assert_eq!(ssh.join(name).metadata().unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    assert!(!there.folder.path().join(".ssh").exists(), "~/.ssh was made");
    // The proxy gives the VM its host key and the user's.
    there.run(&socket, &["ssh-proxy", "dev"], "").await;
    let kept = there.must(&socket, &["exec", "dev", "cat", "/run/microvm-ssh/authorized_keys"], "").await;
    assert_eq!(kept, std::fs::read_to_string(ssh.join("key.pub")).unwrap());
    let wrong = there.run(&socket, &["ssh-config", "dev", "--user", "a b"], "").await;
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(there.run(&socket, &["ssh-config", "nobody"], "").await.status.code(), Some(102));
}
