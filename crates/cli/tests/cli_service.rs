//! The program as a client of a whole server on fakes: what it prints where, and how it ends. Needs no hypervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/program.rs"]
mod program;

use std::process::Stdio;

use program::{Server, command, must, run, service, text, told_json as json};
use serde_json::Value;

/// A server with a VM `dev`, in which `/odd` is no UTF-8 and `/big` is longer than what is collected.
async fn furnished() -> Server {
    let server = service::start().await;
    must(&server, &["create", "--name", "dev"]).await;
    std::fs::write(server.root.join("odd"), b"a\xff\0b").unwrap();
    std::fs::write(server.root.join("big"), vec![b'x'; 10_000_007]).unwrap();
    for name in ["odd", "big"] {
        must(&server, &["cp", server.root.join(name).as_str(), &format!("dev:/{name}")]).await;
    }
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_says_what_is_left_out_of_it() {
    let server = furnished().await;
    let script = "cat /big; cat /odd >&2; exit 3";
    let (code, ended, told) = json(&server, &["exec", "dev", "--", "sh", "-c", script]).await;
    assert_eq!((code, &ended["exit_code"]), (3, &3.into()), "the command's own exit code is lost");
    assert_eq!(ended["stdout"].as_str().unwrap().len(), 10_000_000);
    assert_eq!((&ended["truncated"], &ended["omitted"]["stdout_bytes"]), (&true.into(), &7.into()));
    assert!(ended["omitted"]["rest"].as_str().unwrap().contains("microvm logs dev"), "{}", ended["omitted"]);
    assert!(told.contains("7 bytes of standard output are left out"), "{told}");
    assert_eq!((&ended["stderr"], &ended["stderr_base64"]), (&"a\u{fffd}\0b".into(), &"Yf8AYg==".into()));
    assert_eq!(ended.get("stdout_base64"), None);
    let (code, ended, _) = json(&server, &["run", "--", "sh", "-c", "echo all; exit 4"]).await;
    assert_eq!((code, &ended["stdout"], &ended["truncated"]), (4, &"all\n".into(), &false.into()));
    assert_eq!(ended.get("omitted"), None);
    let (code, children, _) = json(&server, &["fork", "dev", "--", "cat", "/odd"]).await;
    assert_eq!((code, &children[0]["stdout_base64"]), (0, &"Yf8AYg==".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_keeps_its_exit_code_when_its_output_cannot_be_copied() {
    let server = service::start().await;
    let nowhere = server.root.join("no/such/folder");
    let script = |code: u8| format!("echo {{}} > /workspace/output/results.json; exit {code}");
    let (code, ended, told) =
        json(&server, &["run", "--out", nowhere.as_str(), "--", "sh", "-c", &script(5)]).await;
    assert_eq!((code, &ended["exit_code"]), (5, &5.into()), "{told}");
    assert!(ended["output_problem"].as_str().unwrap().contains("no/such/folder"), "{ended}");
    assert!(told.contains("no/such/folder"), "{told}");
    // Where the command says that all is well, the answer does not.
    let (code, ended, _) =
        json(&server, &["run", "--out", nowhere.as_str(), "--", "sh", "-c", &script(0)]).await;
    assert_ne!(code, 0);
    assert_eq!(ended["exit"]["code"], 0);
    // What is no JSON is the caller's to see, and not the command's fault.
    let out = server.root.join("out");
    let bad = "echo no JSON > /workspace/output/results.json; exit 6";
    let (code, ended, told) = json(&server, &["run", "--out", out.as_str(), "--", "sh", "-c", bad]).await;
    assert_eq!((code, &ended["results"]), (6, &Value::Null));
    assert!(told.contains("results.json is not JSON"), "{told}");
    assert_eq!(std::fs::read_to_string(out.join("results.json")).unwrap(), "no JSON\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_have_a_json_form() {
    let server = furnished().await;
    let process = must(&server, &["exec", "-d", "dev", "--", "cat", "/odd"]).await;
    let (code, kept, _) = json(&server, &["logs", "dev", process.trim()]).await;
    assert_eq!((code, &kept["stdout_base64"]), (0, &"Yf8AYg==".into()), "{kept}");
    let (code, console, _) = json(&server, &["logs", "dev", "--console"]).await;
    assert_eq!((code, &console["omitted_bytes"]), (0, &0.into()));
    let printed = run(&server, &["logs", "dev", "--console"]).await;
    assert_eq!(console["console"], text(&printed.stdout));
    let refused = run(&server, &["--output", "json", "logs", "dev", "--console", "--follow"]).await;
    assert!(!refused.status.success() && text(&refused.stderr).contains("follow_is_text"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_name_what_they_cannot_show() {
    let store = microvm_driver_fake::MemoryStore::default();
    let first = service::open(store.clone()).await;
    let request = microvm_core::CreateRequest { name: Some("lost".parse().unwrap()), ..Default::default() };
    let lost = first
        .as_caller(&microvm_types::Caller::local("test"), "test")
        .vms
        .create(request)
        .await
        .unwrap()
        .record
        .id;
    first.close().await;
    store.damage_vm(&lost);
    let server = service::serving(service::open_with(store, "broken-image").await);
    must(&server, &["create", "--name", "dev"]).await;
    let (code, list, told) = json(&server, &["ls"]).await;
    assert_eq!((code, &list["vms"][0]["name"]), (1, &"dev".into()));
    assert_eq!(list["unreadable"][0]["name"], lost.as_str());
    assert!(told.contains(lost.as_str()), "{told}");
    for (kind, others) in [("image", "images"), ("kernel", "kernels")] {
        let (code, list, told) = json(&server, &[kind, "ls"]).await;
        assert_eq!((code, &list["unreadable"][0]["name"]), (1, &"broken-image".into()), "{others}");
        assert!(told.contains("broken-image cannot be read"), "{told}");
    }
    let (code, _, told) = json(&server, &["rm", "--all"]).await;
    assert!(code == 1 && told.contains(lost.as_str()), "{told}");
    let (_, found, _) = json(&server, &["doctor"]).await;
    let failed = |name: &str| {
        let checks = found["checks"].as_array().unwrap();
        checks.iter().any(|check| check["name"] == name && check["status"] == "failed")
    };
    assert!(failed("images") && failed("kernels") && failed("vm records"), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_ends_quietly() {
    let server = furnished().await;
    for arguments in [
        ["exec", "dev", "--", "yes"].as_slice(),
        &["exec", "dev", "--", "cat", "/big"],
        &["run", "--", "yes"],
        &["ls"],
        &["--output", "json", "inspect", "dev"],
        &["--help"],
        &["completions", "bash"],
    ] {
        let mut child =
            command(&server, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        let told = text(&output.stderr);
        assert!(told.is_empty(), "{arguments:?}: {told}");
        let code = output.status.code();
        assert!(code == Some(141) || (arguments == ["--help"] && code == Some(0)), "{arguments:?}: {code:?}");
    }
    let list = json(&server, &["ls"]).await.1;
    assert_eq!(list["vms"].as_array().unwrap().len(), 1, "a VM of `run` is left behind: {list}");
}
