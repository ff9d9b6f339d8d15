//! Habits of those who know other container programs: grammar, exit codes, flags in errors, odd terminals. Needs no
//! hypervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/program.rs"]
mod program;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};

use axum::http::request::Parts;
use microvm_api::{Permission, Problem};
use microvm_server::App;
use microvm_server::caller::{Authenticator, Caller, Peer};
use microvm_types::ErrorKind;
use program::{Server, command, service, text, told};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

async fn names(server: &Server) -> Vec<String> {
    let (_, list, _) = told(server, &["--output", "json", "ls"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    list["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_word_is_the_command_and_the_rest_belongs_to_it() {
    let server = service::start().await;
    let said = told(&server, &["run", "echo", "--name", "x", "-it", "--", "y"]).await;
    assert_eq!((said.0, said.1.as_str()), (0, "--name x -it -- y\n"), "{}", said.2);
    // As before, with the dashes.
    assert_eq!(told(&server, &["run", "--", "echo", "-e"]).await.1, "-e\n");
    assert_eq!(told(&server, &["create", "--name", "dev", "-m", "256m"]).await.0, 0);
    assert_eq!(told(&server, &["exec", "dev", "echo", "--help"]).await.1, "--help\n");
    assert_eq!(told(&server, &["exec", "dev", "-w", "/", "pwd"]).await.1, "/\n");
    let script = "sh -c 'exit 3'".split(' ').next().unwrap();
    assert_eq!(told(&server, &["exec", "dev", script, "-c", "exit 3"]).await.0, 3);
    let file = server.root.join("habits.env");
    std::fs::write(&file, "# two\nA=1\nB=of the file\n").unwrap();
    let said =
        told(&server, &["run", "--rm", "-q", "-m", "1g", "--env-file", file.as_str(), "-e", "A=2", "env"])
            .await;
    assert!(said.1.contains("A=2\n") && said.1.contains("B=of the file\n"), "{said:?}");
    let said = told(&server, &["exec", "--env-file", "/no/such/file", "dev", "env"]).await;
    assert!(said.0 == 125 && said.2.contains("/no/such/file"), "{said:?}");
    assert_eq!(names(&server).await, ["dev"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_of_this_host_is_copied_in_and_run() {
    let server = service::start().await;
    let path = server.root.join("hello.sh");
    std::fs::write(&path, "echo hello; exit 5").unwrap();
    let said = told(&server, &["run", path.as_str()]).await;
    // The fake has no shell that reads files: what counts is that the file is there.
    assert_ne!(said.0, 0);
    assert_eq!(told(&server, &["run", "--keep", "--name", "kept", path.as_str()]).await.0, said.0);
    let kept = told(&server, &["exec", "kept", "cat", "/workspace/hello.sh"]).await;
    assert_eq!((kept.0, kept.1.as_str()), (0, "echo hello; exit 5"), "{}", kept.2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_are_those_of_other_programs() {
    let server = service::start().await;
    assert_eq!(told(&server, &["create", "--name", "dev"]).await.0, 0);
    for verb in [&["run"][..], &["exec", "dev"]] {
        let with = |words: &[&'static str]| [verb, words].concat();
        let said = told(&server, &with(&["no-such-program"])).await;
        assert!(said.0 == 127 && said.2.contains("no-such-program"), "{said:?}");
        assert_eq!(told(&server, &with(&["sh", "-c", "exit 100"])).await.0, 100);
    }
    for (arguments, code) in [
        (&["exec", "nobody", "true"][..], 125),
        (&["run", "--image", "nope", "true"], 125),
        (&["run", "--memory", "0", "true"], 125),
        (&["run", "--no-such-option", "true"], 125),
        (&["exec", "dev", "-t", "true"], 125),
        (&["inspect", "nobody"], 102),
        (&["create", "--memory", "0"], 101),
        (&["create", "--no-such-option"], 2),
        (&["run", "--help"], 0),
    ] {
        let said = told(&server, arguments).await;
        assert_eq!(said.0, code, "{arguments:?}: {said:?}");
    }
    // A word that is no program but an image.
    let said = told(&server, &["run", "debian-python", "ls"]).await;
    assert!(said.0 == 127 && said.2.contains("microvm run --image debian-python"), "{said:?}");
    assert_eq!(names(&server).await, ["dev"], "a failed run left its VM");
}

/// Everybody may do all but look at the host.
struct WithoutHost;

impl Authenticator for WithoutHost {
    fn caller(&self, _peer: Peer, _head: &Parts) -> Result<Caller, Box<Problem>> {
        use Permission::{
            GuestExecute, GuestFiles, GuestRead, ImageRead, VmCreate, VmDelete, VmOperate, VmRead,
        };
        let permissions =
            vec![VmRead, VmCreate, VmOperate, VmDelete, GuestRead, GuestExecute, GuestFiles, ImageRead];
        Ok(Caller { permissions: Some(permissions), ..Caller::local("somebody") })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_needs_no_permission_to_look_at_the_host() {
    let change = |app: App| app.with_authenticator(std::sync::Arc::new(WithoutHost));
    let server = service::serving_as(service::service().await, change);
    // Named: the program asks a server of its own whether it is there.
    let host = format!("unix://{}", microvm_server::socket_path(&server.root));
    let told = async |arguments: &[&str]| {
        let mut command = command(&server, arguments);
        command.env("MICROVM_HOST", &host);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    assert_ne!(told(&["info"]).await.0, 0, "the host is shown to everybody");
    let said = told(&["run", "--timeout", "5s", "echo", "hello"]).await;
    assert_eq!((said.0, said.1.as_str()), (0, "hello\n"), "{}", said.2);
    // The limit is the server's to keep.
    let said = told(&["run", "--timeout", "2h", "echo", "hello"]).await;
    assert!(said.0 == 125 && said.2.contains("limit of 3600 s"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_on_this_host_is_named() {
    let server = service::start().await;
    assert_eq!(told(&server, &["create", "--name", "dev"]).await.0, 0);
    let said = told(&server, &["run", "no-such.py"]).await;
    assert!(said.0 == 127 && said.2.contains("there is no file `no-such.py` here"), "{said:?}");
    assert_eq!(told(&server, &["exec", "dev", "sh", "-c", "echo x > /tmp/file"]).await.0, 0);
    let missing = format!("{}/no-such/", server.root);
    let said = told(&server, &["cp", "dev:/tmp/file", &missing]).await;
    assert!(said.0 == 102 && said.2.contains(&format!("there is no directory {missing} here")), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_vms_boot_is_removed_with_force_only() {
    let server = service::start().await;
    let file = server.root.join("vmlinux");
    std::fs::write(&file, "made up").unwrap();
    assert_eq!(told(&server, &["kernel", "add", file.as_str(), "--name", "mine"]).await.0, 0);
    assert_eq!(told(&server, &["kernel", "add", file.as_str(), "--name", "other"]).await.0, 0);
    for name in ["one", "two"] {
        assert_eq!(told(&server, &["create", "--name", name, "--kernel", "mine"]).await.0, 0);
    }
    let said = told(&server, &["kernel", "rm", "mine"]).await;
    assert!(said.0 == 103 && said.2.contains("VMs boot the kernel `mine`: one, two;"), "{said:?}");
    assert_eq!(told(&server, &["kernel", "rm", "other"]).await.0, 0);
    assert_eq!(told(&server, &["kernel", "rm", "--force", "mine"]).await.1, "mine\n");
    assert_eq!(told(&server, &["kernel", "rm", "mine"]).await.0, 102);
}

/// A server from before servers could be asked to end.
async fn older_server(root: &camino::Utf8Path) {
    use axum::Json;
    use axum::http::StatusCode;
    let problem = Problem::new(ErrorKind::NotFound, "route_not_found", "there is no such route");
    let router = axum::Router::new().fallback(async move || (StatusCode::NOT_FOUND, Json(problem.clone())));
    let path = microvm_server::socket_path(root);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_asked_to_end_is_told_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = camino::Utf8Path::from_path(folder.path()).unwrap();
    older_server(root).await;
    for verb in ["stop", "restart"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["server", verb]).env("MICROVM_ROOT", root).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("too old to be asked to end") && said.contains("SIGTERM ends it"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_options_and_verbs_print_names() {
    let server = service::start().await;
    for (option, value) in [("--memory", "1MiB"), ("--cpus", "0"), ("--disk", "1MiB"), ("--network", "open")]
    {
        let said = told(&server, &["create", option, value]).await;
        let name = if option == "--network" { "`open`" } else { option };
        assert!(said.2.contains(name), "{said:?}");
        for field in ["memory_mib", "vcpus", "disk_mib", "Open"] {
            assert!(!said.2.contains(field), "{said:?}");
        }
    }
    let problem = told(&server, &["--output", "json", "create", "--cpus", "0"]).await.2;
    let problem: Value = serde_json::from_str(&problem).unwrap();
    assert_eq!((&problem["field"], &problem["code"]), (&"vcpus".into(), &"invalid_field".into()));
    let said = told(&server, &["run", "--keep", "--name", "stays", "true"]).await;
    assert!(said.0 == 0 && said.1.is_empty() && said.2.contains("stays"), "{said:?}");
    assert_eq!(told(&server, &["create", "--name", "other"]).await.0, 0);
    let inspected = told(&server, &["inspect", "stays"]).await.1;
    let id = serde_json::from_str::<Value>(&inspected).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(told(&server, &["rm", &id]).await.1, "stays\n");
    assert_eq!(told(&server, &["rm", "--all"]).await.1, "other\n");
    assert_eq!(told(&server, &["rm", "-f", "gone"]).await, (0, String::new(), String::new()));
    assert_eq!(told(&server, &["rm", "gone"]).await.0, 102);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_get_variables_folders_and_commands_of_a_file() {
    let server = service::start().await;
    assert_eq!(told(&server, &["create", "--name", "dev"]).await.0, 0);
    let out = server.root.join("out");
    let fork = ["--output", "json", "fork", "dev", "-n", "3", "--parallel", "1", "-e", "SEED={n}", "-w", "/"];
    let script = "env > /workspace/output/env; pwd";
    let arguments = [&fork[..], &["--out", out.as_str(), "--", "sh", "-c", script]].concat();
    let said = told(&server, &arguments).await;
    let children: Value = serde_json::from_str(&said.1).unwrap();
    assert_eq!((said.0, &children[2]["stdout"]), (0, &"/\n".into()), "{said:?}");
    for number in 1..=3 {
        let text = std::fs::read_to_string(out.join(format!("{number}/env"))).unwrap();
        assert!(text.contains(&format!("SEED={number}\n")), "{text}");
    }
    let file = server.root.join("commands");
    std::fs::write(&file, "# one child each\necho first\n\nexit {n}\n").unwrap();
    let said = told(&server, &["--output", "json", "fork", "dev", "--commands", file.as_str()]).await;
    let children: Value = serde_json::from_str(&said.1).unwrap();
    assert_eq!((said.0, children.as_array().unwrap().len()), (2, 2), "{said:?}");
    assert_eq!((&children[0]["stdout"], &children[1]["exit_code"]), (&"first\n".into(), &2.into()));
    std::fs::write(&file, "# none\n").unwrap();
    let said = told(&server, &["fork", "dev", "--commands", file.as_str()]).await;
    assert!(said.0 == 101 && said.2.contains("holds no command"), "{said:?}");
    assert_eq!(names(&server).await, ["dev"], "children are left");
}

/// What the program prints on a terminal of 20 columns.
async fn on_narrow_terminal(mut command: Command) -> String {
    let people = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&people).unwrap();
    unlockpt(&people).unwrap();
    let path = ptsname(&people, Vec::new()).unwrap().into_string().unwrap();
    let size = rustix::termios::Winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&people, size).unwrap();
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
    drop(command);
    tokio::task::spawn_blocking(move || {
        let (mut seen, mut part, mut people) = (Vec::new(), [0; 4096], std::fs::File::from(people));
        // The other end is gone when the program has ended: EIO.
        while let Ok(length) = people.read(&mut part) {
            seen.extend_from_slice(&part[..length]);
        }
        child.wait().unwrap();
        text(&seen)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_terminal_and_no_colour_are_fine() {
    let server = service::start().await;
    let name = "a-name-that-is-longer-than-twenty-columns";
    assert_eq!(told(&server, &["create", "--name", name]).await.0, 0);
    let list = on_narrow_terminal(command(&server, &["ls"])).await;
    assert!(list.contains(name), "a name is cut: {list}");
    for arguments in
        [&["ls"][..], &["--help"], &["inspect", "nobody"], &["run", "--no-such-option"], &["doctor"]]
    {
        let mut plain = command(&server, arguments);
        plain.env("NO_COLOR", "1").env("TERM", "xterm-256color");
        let shown = on_narrow_terminal(plain).await;
        assert!(!shown.contains("\u{1b}[3") && !shown.contains("\u{1b}[1m"), "{arguments:?}: {shown:?}");
        let piped = told(&server, arguments).await;
        assert!(!piped.1.contains('\u{1b}') && !piped.2.contains('\u{1b}'), "{piped:?}");
    }
}

/// Starts a command whose first line of output is awaited.
async fn first_line(server: &Server, arguments: &[&str]) -> (Child, String) {
    let mut child = command(server, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        line
    });
    (child, line.await.unwrap())
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

/// What the fake guest's port 7 answers through a port of this host.
async fn through(port: u16, sent: &'static [u8]) -> std::io::Result<String> {
    let talk = move || {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.write_all(sent)?;
        connection.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).map(|_| answer)
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_this_host_lead_into_a_vm() {
    let server = service::start().await;
    assert_eq!(told(&server, &["create", "--name", "dev"]).await.0, 0);
    let (mut forward, line) = first_line(&server, &["port", "forward", "dev", "0:7", "0:8"]).await;
    let port = |line: &str| line.split([':', ' ']).nth(1).unwrap().parse::<u16>().unwrap();
    assert!(line.starts_with("127.0.0.1:") && line.ends_with(" -> dev:7\n"), "{line}");
    let local = port(&line);
    assert_eq!(through(local, b"abc").await.unwrap(), "abc3 bytes\n");
    assert_eq!(through(local, b"").await.unwrap(), "0 bytes\n");
    let taken = told(&server, &["port", "forward", "dev", &format!("{local}:7")]).await;
    assert!(taken.0 == 103 && taken.2.contains("is in use") && taken.2.contains("0:7"), "{taken:?}");
    let taken = told(&server, &["run", "-p", &format!("{local}:7"), "true"]).await;
    assert!(taken.0 == 125 && taken.2.contains("is in use"), "{taken:?}");
    let wrong = told(&server, &["port", "forward", "dev", "0.0.0.0:1:7"]).await;
    assert!(wrong.0 == 2 && wrong.2.contains("127.0.0.1 only"), "{wrong:?}");
    // A VM that is stopped answers with a reset, and again after its start.
    assert_eq!(told(&server, &["stop", "dev"]).await.0, 0);
    assert!(through(local, b"abc").await.is_err());
    assert_eq!(told(&server, &["start", "dev"]).await.0, 0);
    assert_eq!(through(local, b"x").await.unwrap(), "x1 bytes\n");
    assert_eq!(told(&server, &["rm", "dev"]).await.0, 0);
    let mut said = String::new();
    let mut errors = forward.stderr.take().unwrap();
    let read = tokio::task::spawn_blocking(move || errors.read_to_string(&mut said).map(|_| said));
    let said = read.await.unwrap().unwrap();
    assert_eq!(forward.wait().unwrap().code(), Some(102), "{said}");
    assert!(said.contains("the VM was deleted") && said.contains("the VM is stopped"), "{said}");
    // `create -p` stays; the VM stays after it.
    let (mut create, name) = first_line(&server, &["create", "--name", "web", "-p", "0:7"]).await;
    assert_eq!(name, "web\n");
    interrupt(&create);
    assert_eq!(create.wait().unwrap().code(), Some(130));
    assert_eq!(names(&server).await, ["web"]);
    let json = ["--output", "json", "port", "forward", "web", "0:7"];
    let (mut forward, line) = first_line(&server, &json).await;
    assert_eq!(line, "{\n");
    interrupt(&forward);
    assert_eq!(forward.wait().unwrap().code(), Some(130));
    assert_eq!(told(&server, &["port", "forward", "nobody", "1"]).await.0, 102);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_to_be_kept_is_kept_whatever_comes_of_its_results() {
    let server = service::start().await;
    let file = server.root.join("file");
    std::fs::write(&file, "no directory").unwrap();
    let below = file.join("results");
    let said = told(&server, &["run", "--keep", "--name", "kept", "--out", below.as_str(), "true"]).await;
    assert_ne!(said.0, 0, "{said:?}");
    assert_eq!(names(&server).await, ["kept"]);
    // A command that never ran has done nothing to keep.
    assert_eq!(told(&server, &["run", "--keep", "--name", "none", "no-such-program"]).await.0, 127);
    assert_eq!(names(&server).await, ["kept"]);
    // Variables without a command would be lost without a word.
    let said = told(&server, &["fork", "kept", "-e", "A=1"]).await;
    assert!(said.0 == 101 && said.2.contains("--env"), "{said:?}");
}
