//! Disk space as the program shows it, and making room. Needs no hypervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../server/tests/support/mod.rs"]
mod service;

use std::process::{Command, Stdio};

use serde_json::Value;
use service::Server;

/// Exit code, standard output and standard error.
async fn told(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
    command.env("MICROVM_ROOT", &server.root).stdin(Stdio::null()).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

async fn usage(server: &Server) -> Value {
    let (code, out, error) = told(server, &["--output", "json", "system", "df"]).await;
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_space_is_shown_and_keys_of_deleted_vms_go() {
    let server = service::start().await;
    assert_eq!(told(&server, &["create", "--name", "dev"]).await.0, 0);
    let shown: Value =
        serde_json::from_str(&told(&server, &["-o", "json", "inspect", "dev"]).await.1).unwrap();
    let gone = "0".repeat(20);
    let keys = server.root.join("ssh/vms");
    for id in [shown["id"].as_str().unwrap(), &gone, "not-an-id"] {
        std::fs::create_dir_all(keys.join(id)).unwrap();
        std::fs::write(keys.join(id).join("host_key"), vec![1; 5_000]).unwrap();
    }
    let before = usage(&server).await;
    let parts = before["parts"].as_array().unwrap();
    let sum: u64 = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, before["bytes"].as_u64().unwrap());
    let ssh = parts.iter().find(|part| part["kind"] == "ssh_keys").unwrap();
    assert_eq!((&ssh["count"], &ssh["active"]), (&3.into(), &1.into()), "{ssh}");
    assert!(ssh["reclaimable_bytes"].as_u64().unwrap() >= 5_000, "{ssh}");

    let (code, out, _) = told(&server, &["system", "df", "-v"]).await;
    assert!(code == 0 && out.contains("RECLAIMABLE") && out.contains("total"), "{out}");
    assert!(out.lines().any(|line| line.starts_with("ssh keys") && line.contains("dev")), "{out}");

    // Nobody can be asked.
    let (code, out, error) = told(&server, &["system", "prune"]).await;
    assert_eq!((code, out.as_str()), (101, ""), "{error}");
    assert!(error.contains("-y") && error.contains("--dry-run"), "{error}");
    let (code, out, error) = told(&server, &["system", "prune", "--dry-run"]).await;
    assert!(code == 0 && out.contains(&gone) && out.contains("would be freed"), "{out}{error}");
    assert!(keys.join(&gone).exists());
    let (code, out, error) = told(&server, &["system", "prune", "-y"]).await;
    assert!(code == 0 && out.contains(&gone) && out.contains("freed"), "{out}{error}");
    assert!(!keys.join(&gone).exists() && keys.join("not-an-id").exists());
    assert!(keys.join(shown["id"].as_str().unwrap()).exists());
    let (code, out, _) = told(&server, &["system", "prune", "-f"]).await;
    assert_eq!((code, out.lines().last()), (0, Some("0B freed")), "{out}");
    let after = usage(&server).await;
    assert!(after["bytes"].as_u64().unwrap() < before["bytes"].as_u64().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_are_also_spelt_as_groups() {
    let server = service::start().await;
    assert_eq!(told(&server, &["vm", "create", "--name", "dev"]).await.1, "dev\n");
    assert_eq!(told(&server, &["vm", "exec", "dev", "echo", "-n", "x"]).await.0, 0);
    assert!(told(&server, &["vm", "list"]).await.1.contains("dev"));
    assert_eq!(told(&server, &["vm", "info", "dev"]).await.1, told(&server, &["inspect", "dev"]).await.1);
    let info = told(&server, &["system", "info"]).await;
    assert!(info.0 == 0 && info.1.contains("hypervisor"), "{info:?}");
    let metrics = told(&server, &["system", "metrics"]).await;
    assert!(metrics.1.contains("microvm_vm_current"), "{metrics:?}");
    assert_eq!(told(&server, &["vm", "exec", "nobody", "true"]).await.0, 125);
    assert_eq!(told(&server, &["vm", "delete", "dev"]).await.1, "dev\n");
    assert_eq!(told(&server, &["vm", "info", "dev"]).await.0, 102);
    assert!(!told(&server, &["--help"]).await.1.contains("spelt"));
}
