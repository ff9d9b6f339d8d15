//! The program beside a whole server on fakes, which lives in the process of the test.
#![allow(dead_code, reason = "not every test file needs all of it")]

use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[path = "../../../server/tests/support/mod.rs"]
pub(crate) mod service;

pub(crate) use service::Server;

/// The program with these arguments and an empty standard input; the server is its server.
pub(crate) fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
    command.env("MICROVM_ROOT", &server.root).stdin(Stdio::null()).args(arguments);
    command
}

/// Runs the program to its end.
pub(crate) async fn run(server: &Server, arguments: &[&str]) -> Output {
    let mut command = command(server, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Standard output without its last line end; the program must succeed.
pub(crate) async fn must(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout).trim_end().to_owned()
}

/// Exit code, standard output and standard error.
pub(crate) async fn told(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let output = run(server, arguments).await;
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Exit code and standard error; the program must print nothing on standard output.
pub(crate) async fn refused(server: &Server, arguments: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = told(server, arguments).await;
    assert_eq!(stdout, "", "{arguments:?}");
    (code, stderr)
}

/// Exit code, JSON on standard output, and standard error.
pub(crate) async fn told_json(server: &Server, arguments: &[&str]) -> (i32, Value, String) {
    let (code, stdout, stderr) = told(server, &[&["--output", "json"], arguments].concat()).await;
    let value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{arguments:?}: {stdout}{stderr}"));
    (code, value, stderr)
}

/// JSON on standard output; the program must succeed.
pub(crate) async fn json(server: &Server, arguments: &[&str]) -> Value {
    let (code, value, stderr) = told_json(server, arguments).await;
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    value
}

/// Bytes as text, those that are no UTF-8 replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
