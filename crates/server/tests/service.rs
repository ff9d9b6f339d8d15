//! The server through its client.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use futures_util::stream;
use microvm_api::CreateVm;
use microvm_api::exec::{CommandLine, Execute};
use microvm_api::image::CommitImage;
use microvm_api::kernel::{AddKernel, KernelSource};
use microvm_api::queries::OpenShell;
use microvm_api::vm::{EventMessage, StopVm};
use microvm_client::{Client, ClientError, ExecEvent, VmQuery, WriteFile};
use microvm_server::{BindError, BoundServer};
use microvm_types::exec::{ExecRequest, OutputOffsets};
use microvm_types::extents::Content;
use microvm_types::image::ImageConfig;
use microvm_types::template::Overrides;
use microvm_types::{ErrorKind, Phase, Share, VmRef};

async fn dev(client: &Client) -> VmRef {
    let request = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    client.create_vm(&request).await.unwrap();
    "dev".parse().unwrap()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> (String, ErrorKind) {
    let error = outcome.unwrap_err();
    (error.code().to_owned(), error.kind())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_lives_and_goes() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let shown = client.vm(&vm).await.unwrap();
    assert_eq!((shown.state, shown.status), (Phase::Running, Phase::Running));
    assert_eq!(shown.created_at, "2025-12-31T19:00:00.000-05:00");
    assert_eq!(client.list_vms(&VmQuery::default()).await.unwrap().vms, [shown]);
    let other = VmQuery { labels: vec![("a".into(), "b".into())], ..VmQuery::default() };
    assert_eq!(client.list_vms(&other).await.unwrap().vms, []);
    assert_eq!(client.pause_vm(&vm).await.unwrap().state, Phase::Paused);
    assert_eq!(client.resume_vm(&vm).await.unwrap().state, Phase::Running);
    assert_eq!(client.stop_vm(&vm, &StopVm::default()).await.unwrap().state, Phase::Stopped);
    assert_eq!(code(client.ping(&vm).await), ("vm_not_running".into(), ErrorKind::Conflict));
    assert_eq!(client.start_vm(&vm).await.unwrap().state, Phase::Running);
    let again = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    assert_eq!(code(client.create_vm(&again).await), ("vm_name_taken".into(), ErrorKind::Conflict));
    client.delete_vm(&vm).await.unwrap();
    assert_eq!(code(client.vm(&vm).await), ("vm_not_found".into(), ErrorKind::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_vm_is_followed_and_no_other() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let mut events = client.events_of(&vm).await.unwrap();
    let other = CreateVm { name: Some("other".parse().unwrap()), ..CreateVm::default() };
    client.create_vm(&other).await.unwrap();
    client.pause_vm(&vm).await.unwrap();
    let EventMessage::Event(event) = events.next().await.unwrap().unwrap() else {
        panic!("events are missed")
    };
    assert_eq!((event.name.as_str(), event.state), ("dev", Phase::Paused));
    let missing = client.events_of(&"nobody".parse().unwrap()).await.err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_cross_as_their_length() {
    const HOLE: u64 = 8 << 20;
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let pieces =
        || vec![Content::Hole(HOLE), Content::Data(vec![7; 100_000].into()), Content::Hole(HOLE)].into_iter();
    let length = 2 * HOLE + 100_000;
    let options = WriteFile::default();
    let written = client.write_content(&vm, b"/tmp/sparse", &options, stream::iter(pieces().map(Ok)));
    assert_eq!(written.await.unwrap().bytes, length);
    let (stat, mut data) = client.read_content(&vm, b"/tmp/sparse").await.unwrap();
    assert_eq!(stat.size, length);
    let (mut holes, mut bytes) = (0, 0);
    while let Some(piece) = data.next().await.unwrap() {
        match piece {
            Content::Hole(count) => holes += count,
            Content::Data(data) => bytes += data.len() as u64,
        }
    }
    assert_eq!(holes + bytes, length);
    assert!(bytes < 1 << 20, "{bytes} bytes crossed");
    // The same file for those who ask for plain bytes.
    let mut plain = client.read_file(&vm, b"/tmp/sparse").await.unwrap().1;
    let mut received = 0;
    while let Some(part) = plain.next().await.unwrap() {
        received += part.len() as u64;
    }
    assert_eq!(received, length);
    // Half a body leaves nothing.
    let broken = pieces().take(2).map(Ok).chain([Err(std::io::Error::other("gone"))]);
    client
        .write_content(&vm, b"/tmp/half", &options, stream::iter(broken.collect::<Vec<_>>()))
        .await
        .unwrap_err();
    assert_eq!(code(client.stat(&vm, b"/tmp/half").await).1, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_with_folders_says_that_changes_are_found_by_polling() {
    let server = support::start().await;
    // The fake's first kernel has no 9P, as the distribution's has none.
    let kernel = AddKernel { name: None, source: KernelSource::Build };
    let mut lines = server.client.add_kernel(&kernel).await.unwrap();
    while lines.next().await.unwrap().is_some() {}
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().to_str().unwrap().to_owned();
    let mut request = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    request.overrides.kernel = Some("built".to_owned());
    request.overrides.shares = vec![Share { source, target: "/data".into(), read_only: true }];
    let shown = serde_json::to_value(server.client.create_vm(&request).await.unwrap()).unwrap();
    assert_eq!(shown["share_changes"], "polling", "{shown}");
    request = CreateVm { name: Some("plain".parse().unwrap()), ..CreateVm::default() };
    assert_eq!(server.client.create_vm(&request).await.unwrap().share_changes, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_stream() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let request = ExecRequest { command: vec!["cat".into()], stdin: true, ..ExecRequest::default() };
    let mut session = client.exec(&vm, &request).await.unwrap();
    let sent: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let writer = async {
        session.writer.stdin(&sent).await.unwrap();
        session.writer.close_stdin().await.unwrap();
    };
    let events = &mut session.events;
    let reader = async {
        let mut all = Vec::new();
        loop {
            match events.next().await.unwrap() {
                ExecEvent::Stdout(bytes) => all.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => panic!("standard error: {bytes:?}"),
                ExecEvent::UpToDate => panic!("nobody only looked"),
                ExecEvent::Exited(status) => return (all, status.shell_code()),
            }
        }
    };
    let ((), (received, exit)) = tokio::join!(writer, reader);
    assert!(received == sent, "{} bytes came back of {}", received.len(), sent.len());
    assert_eq!(exit, 0);
    let missing = ExecRequest { command: vec!["no-such-program".into()], ..ExecRequest::default() };
    assert_eq!(code(client.exec(&vm, &missing).await).1, ErrorKind::NotFound);
    let empty = ExecRequest::default();
    assert_eq!(code(client.exec(&vm, &empty).await), ("command_invalid".into(), ErrorKind::Invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shot_commands_collect() {
    let server = support::start().await;
    let vm = dev(&server.client).await;
    let request = Execute {
        command: CommandLine::Shell("echo out; echo err >&2; exit 3".into()),
        timeout: 5,
        working_dir: None,
        env: std::collections::BTreeMap::new(),
        user: None,
    };
    let done = server.client.execute(&vm, &request).await.unwrap();
    assert_eq!((done.success, done.exit_code), (false, 3));
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!((done.truncated, done.omitted, done.stdout_base64), (false, None, None));
    let much =
        Execute { command: CommandLine::Shell("head -c 10000009 /dev/zero".into()), ..request.clone() };
    let done = server.client.execute(&vm, &much).await.unwrap();
    assert!(done.success && done.truncated && done.stdout.len() == 10_000_000);
    assert_eq!(done.omitted.unwrap().stdout_bytes, 9);
    let kept = server.client.read_output(&vm, &done.process, OutputOffsets::default(), false).await.unwrap();
    assert!(kept.started.stdout_offset > 0, "the rest is to be had under the id that was given");
    let wrong = Execute { timeout: 0, ..request };
    assert_eq!(code(server.client.execute(&vm, &wrong).await).1, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_a_mebibyte_run_and_longer_ones_are_refused() {
    let server = support::start().await;
    let vm = dev(&server.client).await;
    let wish: Execute = serde_json::from_str(r#"{"command": "true"}"#).unwrap();
    let run = async |command| server.client.execute(&vm, &Execute { command, ..wish.clone() }).await;
    // JSON writes control characters six times as long.
    let filler = "\u{2}".repeat((1 << 20) - "echo ''".len());
    let done = run(CommandLine::Shell(format!("echo '{filler}'"))).await.unwrap();
    let told = (done.exit_code, done.stderr.as_str(), done.stdout.len());
    assert_eq!(told, (0, "", filler.len() + 1));
    assert!(done.stdout.trim_end_matches('\n') == filler, "what came back differs");
    let words =
        std::iter::once("echo".to_owned()).chain(std::iter::repeat_n("x".repeat(99_999), 10)).collect();
    let done = run(CommandLine::Arguments(words)).await.unwrap();
    assert!(done.success && done.stdout.len() == 1_000_000, "{} bytes", done.stdout.len());
    let longer = run(CommandLine::Shell("x".repeat((1 << 20) + 1))).await;
    assert_eq!(code(longer), ("over_limit".into(), ErrorKind::Invalid));
    let argument = run(CommandLine::Arguments(vec!["echo".into(), "x".repeat(131_072)])).await;
    assert_eq!(code(argument), ("command_invalid".into(), ErrorKind::Invalid));
    // The same rules on the WebSocket.
    let limit =
        ExecRequest { timeout_ms: Some(3_600_001), command: vec!["true".into()], ..ExecRequest::default() };
    assert_eq!(code(server.client.exec(&vm, &limit).await), ("over_limit".into(), ErrorKind::Invalid));
    let many = ExecRequest { command: vec!["x".repeat(100_000); 3], ..ExecRequest::default() };
    assert_eq!(code(server.client.exec(&vm, &many).await), ("command_invalid".into(), ErrorKind::Invalid));
    let none = ExecRequest { command: vec!["true".into()], ..ExecRequest::default() };
    assert!(server.client.exec(&vm, &none).await.is_ok(), "a streamed command may have no limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_command_that_failed_is_told_with_its_code_and_the_end_of_its_output() {
    let server = support::start().await;
    let client = &server.client;
    let create = async |name: &str, commands: &[&str]| {
        let commands = commands.iter().map(|&command| command.to_owned()).collect();
        let overrides = Overrides { start_commands: Some(commands), ..Overrides::default() };
        let request = CreateVm { name: Some(name.parse().unwrap()), overrides, ..CreateVm::default() };
        client.create_vm(&request).await.unwrap();
        name.parse::<VmRef>().unwrap()
    };
    let failed = "head -c 5000 /dev/zero >&2; echo why >&2; exit 7";
    let dev = create("dev", &["echo well", failed, "echo never"]).await;
    let told = client.start_commands(&dev).await.unwrap().commands;
    let seen: Vec<_> = told.iter().map(|one| (one.command.as_str(), one.failed, one.exit_code)).collect();
    assert_eq!(seen, [("echo well", false, Some(0)), (failed, true, Some(7))]);
    assert_eq!((told[0].stdout.as_deref(), told[1].stdout.as_deref()), (None, Some("")));
    let stderr = told[1].stderr.as_deref().unwrap();
    assert!(stderr.len() == 2048 && stderr.ends_with("\0why\n"), "{stderr:?}");
    let none = create("none", &[]).await;
    assert_eq!(client.start_commands(&none).await.unwrap().commands, []);
    // Nobody is woken for the question.
    client.pause_vm(&dev).await.unwrap();
    assert!(client.start_commands(&dev).await.is_err());
    assert_eq!(client.vm(&dev).await.unwrap().state, Phase::Paused);
    client.stop_vm(&none, &StopVm::default()).await.unwrap();
    assert_eq!(code(client.start_commands(&none).await), ("guest_not_at_hand".into(), ErrorKind::Conflict));
    assert_eq!(code(client.start_commands(&"x".parse().unwrap()).await).1, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_command_that_could_not_be_started_is_told_with_the_reason() {
    let server = support::start().await;
    let client = &server.client;
    let config = ImageConfig { working_directory: "/nowhere".to_owned(), ..ImageConfig::default() };
    let commit = CommitImage { vm: dev(client).await, name: "lost".to_owned(), config };
    let mut lines = client.commit(&commit).await.unwrap();
    while lines.next().await.unwrap().is_some() {}
    let overrides = Overrides {
        image: Some("lost".to_owned()),
        start_commands: Some(vec!["echo first".to_owned(), "echo second".to_owned()]),
        ..Overrides::default()
    };
    let request = CreateVm { name: Some("lost".parse().unwrap()), overrides, ..CreateVm::default() };
    client.create_vm(&request).await.unwrap();
    let lost = "lost".parse().unwrap();
    let told = client.start_commands(&lost).await.unwrap().commands;
    let [one] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        (one.command.as_str(), one.failed, &one.process, one.exit_code),
        ("echo first", true, &None, None)
    );
    let reason = one.reason.as_deref().unwrap();
    assert!(reason.starts_with("it could not be started: ") && reason.contains("/nowhere"), "{reason}");
    let health = client.health_of_guests().await.unwrap();
    let health = health.vms.iter().find(|vm| vm.name.as_str() == "lost").unwrap().health.clone().unwrap();
    assert_eq!(health.start_command_not_started.map(|command| command.place), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_has_a_terminal_of_its_own_and_ends_with_its_connection() {
    let server = support::start().await;
    let vm = dev(&server.client).await;
    let terminal = OpenShell { columns: Some(100), rows: Some(30), ..OpenShell::default() };
    let mut session = server.client.shell(&vm, &terminal).await.unwrap();
    session.writer.stdin(b"stty size; exit 5").await.unwrap();
    session.writer.close_stdin().await.unwrap();
    let (mut shown, mut exit) = (Vec::new(), None);
    while exit.is_none() {
        match session.events.next().await.unwrap() {
            ExecEvent::Stdout(bytes) => shown.extend_from_slice(&bytes),
            ExecEvent::Exited(status) => exit = status.code,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((String::from_utf8_lossy(&shown).trim(), exit), ("30 100", Some(5)));
    // A caller who goes away hangs the shell up.
    let session = server.client.shell(&vm, &OpenShell::default()).await.unwrap();
    let id = session.started.process.clone();
    drop(session);
    let mut watched = server.client.read_output(&vm, &id, OutputOffsets::default(), true).await.unwrap();
    loop {
        match watched.events.next().await.unwrap() {
            ExecEvent::Exited(status) => break assert_eq!(status.signal, Some(1)),
            ExecEvent::Stdout(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let wrong = OpenShell { rows: Some(0), ..OpenShell::default() };
    assert!(server.client.shell(&vm, &wrong).await.is_err());
    assert!(server.client.shell(&"none".parse().unwrap(), &OpenShell::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_any_name_go_both_ways() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let path = b"/tmp/a b\n%\xff".as_slice();
    let parts = [bytes::Bytes::from_static(b"hello "), bytes::Bytes::from_static(b"world")];
    let data = stream::iter(parts.map(Ok));
    let options = WriteFile { mode: Some(0o600), parents: true, ..WriteFile::default() };
    let summary = client.write_file(&vm, path, &options, data).await.unwrap();
    assert_eq!(summary.bytes, 11);
    let (stat, mut data) = client.read_file(&vm, path).await.unwrap();
    assert_eq!((stat.size, stat.mode & 0o777), (11, 0o600));
    let mut all = Vec::new();
    while let Some(part) = data.next().await.unwrap() {
        all.extend_from_slice(&part);
    }
    assert_eq!(all, b"hello world");
    client.remove(&vm, path, false).await.unwrap();
    assert_eq!(code(client.stat(&vm, path).await).1, ErrorKind::NotFound);
    let broken = stream::iter([Ok(bytes::Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))]);
    client.write_file(&vm, b"/tmp/half", &WriteFile::default(), broken).await.unwrap_err();
    assert_eq!(code(client.stat(&vm, b"/tmp/half").await).1, ErrorKind::NotFound);
    assert_eq!(code(client.stat(&vm, b"relative").await), ("path_invalid".into(), ErrorKind::Invalid));
}

/// A tar stream of empty entries: names and types.
fn archive(entries: &[(&str, u8)]) -> bytes::Bytes {
    let mut out = Vec::new();
    for (name, kind) in entries {
        let mut header = [0; 512];
        let fields: [(usize, &[u8]); 7] = [
            (0, name.as_bytes()),
            (100, b"0000644\0"),
            (108, b"0000000\0"),
            (116, b"0000000\0"),
            (124, b"00000000000\0"),
            (136, b"00000000001\0"),
            (257, b"ustar\x0000"),
        ];
        for (at, bytes) in fields {
            header[at..at + bytes.len()].copy_from_slice(bytes);
        }
        header[156] = *kind;
        let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
    }
    out.resize(out.len() + 1024, 0);
    out.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_archives_leave_out_is_told_both_ways() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let data = archive(&[("pipe", b'6'), ("label", b'V'), ("last", b'0')]);
    let summary = client.push_archive(&vm, b"/tmp/in", None, stream::iter([Ok(data)])).await.unwrap();
    assert_eq!((summary.left_out.count, summary.left_out.entries[0].path.as_str()), (1, "label"));
    assert_eq!(client.list_files(&vm, b"/tmp/in", 1).await.unwrap().entries.len(), 2);
    let mut pulled = client.pull_archive(&vm, b"/tmp/in", false).await.unwrap();
    assert_eq!(pulled.left_out(), None, "told before its end");
    while pulled.next().await.unwrap().is_some() {}
    assert_eq!(pulled.left_out().map(|left_out| left_out.count), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_root_has_one_server_and_a_stale_socket_is_replaced() {
    let server = support::start().await;
    assert!(matches!(BoundServer::bind(&server.root), Err(BindError::Busy { pid: Some(_), .. })));
    let root = server.root.clone();
    // The lock is the root's own: without its folder for sockets there is no second server either, nor are others named.
    std::fs::rename(root.join("run"), root.join("away")).unwrap();
    let error = BoundServer::bind(&root).unwrap_err();
    let own = std::process::id().to_string();
    assert!(matches!(&error, BindError::Busy { pid: Some(pid), .. } if *pid == own), "{error}");
    assert!(!root.join("run").exists(), "something was made for a server that cannot be");
    std::fs::rename(root.join("away"), root.join("run")).unwrap();
    server.ending.cancel();
    let mut server = server;
    tokio::time::timeout(Duration::from_secs(10), &mut server.serving).await.unwrap().unwrap().unwrap();
    // As after a kill -9: a socket nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(microvm_server::socket_path(&root)).unwrap());
    let bound = BoundServer::bind(&root).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &camino::Utf8Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(bound.path()), 0o600);
    assert_eq!(mode(bound.path().parent().unwrap()), 0o700);
    drop(bound);
    // A link would let whoever made it put a socket of his own in the place of ours.
    std::fs::rename(root.join("run"), root.join("away")).unwrap();
    std::os::unix::fs::symlink(root.join("away"), root.join("run")).unwrap();
    assert!(matches!(BoundServer::bind(&root), Err(BindError::Io { .. })));
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(BoundServer::bind(&root), Err(BindError::Foreign { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptions_of_files_fit_into_a_header() {
    let server = support::start().await;
    let client = &server.client;
    let vm = dev(client).await;
    let path = "/tmp/naïve 文字 🦀\u{7f}".as_bytes();
    let data = stream::iter([Ok(bytes::Bytes::from_static(b"x"))]);
    client.write_file(&vm, path, &WriteFile::default(), data).await.unwrap();
    let (stat, _) = client.read_file(&vm, path).await.unwrap();
    assert_eq!(stat.path.as_bytes(), path);
    for depth in [0, 257] {
        assert_eq!(code(client.list_files(&vm, b"/tmp", depth).await).1, ErrorKind::Invalid, "{depth}");
    }
}
