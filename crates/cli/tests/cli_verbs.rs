//! Verbs through the program, beside a whole server on fakes. Needs no hypervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/program.rs"]
mod program;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};

use program::{Server, command, json, must, refused, run, service, text};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn with_dev() -> Server {
    let server = service::start().await;
    must(&server, &["create", "--name", "dev"]).await;
    server
}

/// A child whose standard output is read line by line.
fn lines(mut child: Child) -> (Child, BufReader<std::process::ChildStdout>) {
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_json_lines_and_end_with_ctrl_c() {
    let server = with_dev().await;
    let arguments = ["--output", "json", "events", "-f", "--vm", "dev"];
    let (mut child, mut output) = lines(command(&server, &arguments).stdout(Stdio::piped()).spawn().unwrap());
    // It is following as soon as it tells one of many.
    let first = blocking(move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        (line, output)
    });
    tokio::pin!(first);
    let (line, mut output) = loop {
        must(&server, &["pause", "dev"]).await;
        must(&server, &["resume", "dev"]).await;
        if let Ok(first) = tokio::time::timeout(std::time::Duration::from_millis(50), &mut first).await {
            break first;
        }
    };
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["name"], &event["gone"]), (&"dev".into(), &false.into()));
    must(&server, &["create", "--name", "other"]).await;
    must(&server, &["rm", "dev"]).await;
    let rest = blocking(move || {
        let mut seen = Vec::new();
        loop {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            seen.push(event["name"].as_str().unwrap().to_owned());
            if event["gone"] == true {
                return seen;
            }
        }
    });
    assert!(rest.await.iter().all(|name| name == "dev"));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(blocking(move || child.wait().unwrap()).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_the_state_the_time_or_the_process() {
    let server = with_dev().await;
    assert_eq!(must(&server, &["wait", "dev", "--state", "running"]).await, "running");
    let (code, told) = refused(&server, &["wait", "dev", "--timeout", "1s"]).await;
    assert!(code == 107 && told.contains("`dev` is still running"), "{code} {told}");
    let (code, told) = refused(&server, &["wait", "dev", "--state", "nope"]).await;
    assert!(code == 2 && told.contains("running") && told.contains("deleted"), "{code} {told}");
    let waiting = ["wait", "dev", "--state", "deleted", "--state", "failed"];
    let waiter = command(&server, &waiting).stdout(Stdio::piped()).spawn().unwrap();
    let process = must(&server, &["exec", "-d", "dev", "--", "sh", "-c", "sleep 0.3; exit 7"]).await;
    assert_eq!(must(&server, &["wait", "dev", &process]).await, "7");
    assert_eq!(json(&server, &["wait", "dev", &process]).await["exit_code"], 7);
    let long = must(&server, &["exec", "-d", "dev", "--", "sleep", "1000"]).await;
    assert_eq!(refused(&server, &["wait", "dev", &long, "--timeout", "300ms"]).await.0, 107);
    must(&server, &["kill", "dev", &long]).await;
    assert_eq!(must(&server, &["wait", "dev", &long]).await, "137");
    must(&server, &["rm", "dev"]).await;
    let output = blocking(move || waiter.wait_with_output().unwrap()).await;
    // It may have come when the VM was gone already.
    assert!(text(&output.stdout) == "deleted\n" || output.status.code() == Some(102), "{output:?}");
    assert_eq!(refused(&server, &["wait", "dev"]).await.0, 102);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_restart_rename_and_update_print_what_they_did() {
    let server = with_dev().await;
    let (code, told) = refused(&server, &["kill", "-s", "HUP", "dev"]).await;
    assert!(code == 103 && told.contains("no command runs in the VM `dev`"), "{code} {told}");
    let process = must(&server, &["exec", "-d", "dev", "--", "sleep", "1000"]).await;
    assert_eq!(must(&server, &["kill", "-s", "SIGHUP", "dev"]).await, process);
    assert_eq!(must(&server, &["wait", "dev", &process]).await, "129");
    assert_eq!(must(&server, &["kill", "dev"]).await, "dev");
    assert_eq!(json(&server, &["inspect", "dev"]).await["state"], "stopped");
    assert_eq!(refused(&server, &["kill", "dev"]).await.0, 103);
    assert_eq!(must(&server, &["restart", "dev"]).await, "dev");
    assert_eq!(json(&server, &["restart", "--force", "dev"]).await[0]["state"], "running");
    assert_eq!(must(&server, &["rename", "dev", "web"]).await, "web");
    let arguments = ["update", "web", "--lifetime", "+2h", "--label", "team=red", "--ephemeral=false"];
    assert_eq!(must(&server, &arguments).await, "web");
    let vm = json(&server, &["inspect", "web"]).await;
    assert_eq!((&vm["limits"]["lifetime_seconds"], &vm["labels"]["team"]), (&7200.into(), &"red".into()));
    must(&server, &["update", "web", "--lifetime", "off", "--rm-label", "team"]).await;
    let vm = json(&server, &["inspect", "web"]).await;
    assert_eq!((vm["limits"].get("lifetime_seconds"), vm["labels"].get("team")), (None, None));
    let (code, told) = refused(&server, &["update", "web"]).await;
    assert!(code == 2 && told.contains("--lifetime"), "{code} {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_show_a_vm_that_dies() {
    let server = with_dev().await;
    must(&server, &["create", "--name", "other"]).await;
    let once = must(&server, &["stats", "--no-stream", "dev"]).await;
    assert!(once.starts_with("NAME") && once.contains("dev") && once.contains("50% of 512"), "{once}");
    let arguments = ["--output", "json", "stats", "dev", "other"];
    let (mut child, mut output) = lines(command(&server, &arguments).stdout(Stdio::piped()).spawn().unwrap());
    let look = async |mut output: BufReader<std::process::ChildStdout>| {
        blocking(move || {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            (serde_json::from_str::<Value>(&line).unwrap(), output)
        })
        .await
    };
    let (first, again) = look(output).await;
    output = again;
    assert_eq!((&first[0]["name"], &first[0]["state"]), (&"dev".into(), &"running".into()));
    must(&server, &["rm", "dev"]).await;
    loop {
        let (rows, again) = look(output).await;
        output = again;
        assert_eq!((&rows[1]["name"], &rows[1]["state"]), (&"other".into(), &"running".into()));
        if rows[0]["state"] == "deleted" {
            break;
        }
    }
    child.kill().unwrap();
    blocking(move || child.wait().unwrap()).await;
    assert_eq!(refused(&server, &["stats", "--no-stream", "never"]).await.0, 102);
}

/// A terminal: its end for people, and a path for programs.
fn terminal() -> (OwnedFd, std::path::PathBuf) {
    let people = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&people).unwrap();
    unlockpt(&people).unwrap();
    let path = ptsname(&people, Vec::new()).unwrap().into_string().unwrap();
    let size = rustix::termios::Winsize { ws_row: 20, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&people, size).unwrap();
    (people, path.into())
}

/// Runs the program on a terminal; `converse` has the other end of it.
fn on_terminal(
    mut command: Command,
    converse: impl FnOnce(&mut std::fs::File) + Send + 'static,
) -> impl Future<Output = Output> {
    let (people, path) = terminal();
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let child = command.stdin(open()).stdout(open()).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    blocking(move || {
        let mut people = std::fs::File::from(people);
        converse(&mut people);
        // A terminal that is closed loses what was typed and is not read yet.
        let output = child.wait_with_output().unwrap();
        drop(people);
        output
    })
}

/// Reads until the text has come.
fn expect(terminal: &mut std::fs::File, wanted: &str) {
    let mut seen = Vec::new();
    let mut part = [0; 1024];
    while !text(&seen).contains(wanted) {
        let length = terminal.read(&mut part).unwrap();
        seen.extend_from_slice(&part[..length]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_in_the_background_is_attached_to_and_left_by_keys() {
    let server = with_dev().await;
    let process = must(&server, &["exec", "-dit", "dev", "--", "sh", "-c", "echo ready; cat"]).await;
    let all = json(&server, &["ps", "dev"]).await;
    let is_it = |one: &&Value| one["id"] == process.as_str();
    let listed = all["processes"].as_array().unwrap().iter().find(is_it).unwrap();
    let flags = ["detached", "terminal", "stdin"].map(|flag| listed[flag].as_bool());
    assert_eq!(flags, [Some(true); 3], "{listed}");
    let left = on_terminal(command(&server, &["attach", "dev"]), |terminal| {
        // Printed when the terminal is the process's.
        expect(terminal, "ready");
        terminal.write_all(b"hello\r").unwrap();
        expect(terminal, "hello");
        terminal.write_all(b"\x10\x11").unwrap();
    })
    .await;
    let told = text(&left.stderr);
    assert!(left.status.success() && told.contains(&format!("microvm attach dev {process}")), "{told}");
    // It keeps running and has its output; other keys can be chosen.
    let again = on_terminal(
        command(&server, &["attach", "dev", &process, "--detach-keys", "ctrl-a,d"]),
        |terminal| {
            expect(terminal, "hello");
            terminal.write_all(b"\x01d").unwrap();
        },
    );
    assert!(again.await.status.success());
    must(&server, &["kill", "-s", "TERM", "dev", &process]).await;
    let output = run(&server, &["attach", "dev", &process]).await;
    let kept = text(&output.stdout);
    assert!(output.status.code() == Some(143) && kept.contains("hello"), "{kept}");
    let (code, told) = refused(&server, &["attach", "dev"]).await;
    assert!(code == 125 && told.contains("exec -dit dev"), "{code} {told}");
    for _ in 0..2 {
        must(&server, &["exec", "-d", "dev", "--", "sleep", "1000"]).await;
    }
    let (code, told) = refused(&server, &["attach", "dev"]).await;
    assert!(code == 125 && told.contains("several processes run in dev"), "{code} {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_shown_and_stopped() {
    let mut server = service::start().await;
    let shown = json(&server, &["server", "status"]).await;
    assert_eq!((&shown["running"], &shown["pid"]), (&true.into(), &std::process::id().into()));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(must(&server, &["version"]).await, format!("client  {version}\nserver  {version}"));
    let info = json(&server, &["info"]).await;
    assert_eq!((&info["vms"], &info["images"]), (&serde_json::json!({}), &1.into()), "{info}");
    assert!(must(&server, &["info"]).await.contains("\nVMs         none\n"));
    // Two that stop it at once both succeed.
    let (one, two) = tokio::join!(run(&server, &["server", "stop"]), run(&server, &["server", "stop"]));
    assert!(one.status.success() && two.status.success(), "{one:?} {two:?}");
    (&mut server.serving).await.unwrap().unwrap();
    let (status, version) = (run(&server, &["server", "status"]).await, must(&server, &["version"]).await);
    assert_eq!((status.status.code(), text(&status.stdout).as_str()), (Some(106), "not running\n"));
    assert!(version.ends_with("server  not running"), "{version}");
    assert_eq!(must(&server, &["server", "stop"]).await, "no server was running");
}
