//! Every table the program prints, whole, from fixed answers of a server. `MICROVM_UPDATE_SNAPSHOTS=1` writes the files in
//! `tests/tables` anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const ID: &str = "0123456789abcdefghij";

/// An instant so many seconds ago, with some to spare, so that its age stays what it is while the test runs.
fn ago(seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let zone = microvm_api::time::Zone::named("UTC").unwrap();
    zone.format(i64::try_from((now - seconds) * 1000).unwrap())
}

fn vm(name: &str, changes: &Value) -> Value {
    let mut vm = json!({
        "id": ID, "name": name, "state": "running", "status": "running", "vcpus": 2, "memory_mb": 512,
        "memory_mib": 512, "disk_mib": 10240, "template": "linux-default", "image": "debian-python",
        "image_digest": "sha256:00", "kernel": "default", "network": "isolated", "labels": {}, "metadata": {},
        "limits": {}, "created_at": ago(90), "updated_at": ago(90), "started_at": ago(90), "failure": null,
        "reachable": true
    });
    merge(&mut vm, changes);
    vm
}

fn snapshot(name: &str, changes: &Value) -> Value {
    let mut snapshot = json!({
        "id": ID, "name": name, "vm": ID, "vm_name": "dev", "parent_snapshot": null, "golden": false,
        "description": "", "memory_mib": 512, "disk_mib": 1024, "size_bytes": 12_582_912, "pause_ms": 3.25,
        "created_at": ago(3 * 3600 + 60), "incremental": false, "memory_bytes": 5, "checksum": "00", "template": "linux-default", "image": "debian-python",
        "vcpus": 1
    });
    merge(&mut snapshot, changes);
    snapshot
}

fn merge(value: &mut Value, changes: &Value) {
    for (key, change) in changes.as_object().into_iter().flatten() {
        value[key] = change.clone();
    }
}

/// Answers of the server, whose texts of guests and users hold characters that a terminal must not get.
fn answer(path: &str) -> Value {
    let config =
        json!({ "environment": {}, "user": "", "working_directory": "", "entrypoint": [], "command": [] });
    let hostile = "a\u{1b}[2Jb\nc\u{202e}d";
    let snapshots = [
        snapshot("ready", &json!({ "description": hostile })),
        snapshot(
            "later",
            &json!({ "id": "0123456789abcdefghik", "parent_snapshot": ID, "size_bytes": 4096 }),
        ),
        snapshot(
            "orphan",
            &json!({ "id": "0123456789abcdefghil", "parent_snapshot": "zzzzzzzzzzzzzzzzzzzz" }),
        ),
    ];
    match path {
        "/health/live" => {
            json!({ "status": "ready", "service": "microvm", "version": "0.1.0", "timestamp": ago(0) })
        }
        "/vms" => json!({ "vms": [
            vm("dev", &json!({})),
            vm("gone", &json!({ "state": "running", "reachable": false, "unreachable_since": ago(30) })),
            vm("full", &json!({ "state": "paused", "rest": { "kind": "disk_full" }, "created_at": ago(7200 + 60) })),
            vm("a-name-that-is-as-long-as-one-may-be-0123456789-0123456789-01234", &json!({ "state": "hibernated",
                "memory_mib": 1536, "image": hostile, "created_at": ago(3 * 86_400 + 60) })),
        ]}),
        "/vms/dev/processes" => json!({ "processes": [
            { "id": ID, "pid": 7, "command": ["sh", "-c", hostile], "age_ms": 1_250, "exit": null, "stdout_bytes": 0, "stderr_bytes": 0 },
            { "id": ID, "pid": 8, "command": ["true"], "age_ms": 61_000, "exit": { "code": 3, "signal": null }, "stdout_bytes": 0, "stderr_bytes": 0 },
        ]}),
        "/vms/dev/guest/processes" => json!({ "success": true, "timestamp": ago(0), "processes": [
            { "pid": 1, "parent": 0, "uid": 0, "state": "S", "resident_bytes": 3_145_728, "cpu_ms": 1_250, "command": "/init" },
            { "pid": 99, "parent": 1, "uid": 1000, "state": "R", "resident_bytes": 0, "cpu_ms": 0, "command": hostile },
        ]}),
        "/pools" => json!({ "pools": [
            { "name": "py", "template": "code", "min": 4, "max": 16, "max_age_seconds": 3600, "waiting": 4,
              "filling": 0, "handed_out": 2, "failure": null, "created_at": ago(5) },
            { "name": "bad", "template": "x", "min": 1, "max": 1, "max_age_seconds": 3600, "waiting": 0,
              "filling": 1, "handed_out": 0, "failure": hostile, "created_at": ago(5) },
        ]}),
        "/images" => json!({ "images": [
            { "digest": format!("sha256:{}", "ab".repeat(32)), "names": ["debian-python", "py"], "size": 157_286_400,
              "file_system": "erofs", "created_at": ago(86_400 + 60), "source": "Debian bookworm: python3", "config": config },
            { "digest": format!("sha256:{}", "cd".repeat(32)), "names": [], "size": 4096, "file_system": "erofs",
              "created_at": ago(120), "source": hostile, "config": config },
        ]}),
        "/kernels" => json!({ "kernels": [
            { "name": "built", "is_default": true, "release": "6.1.0-microvm", "size": 18_874_368, "discovery": "command_line", "outdated": true,
              "created_at": ago(120), "source": "linux-source-6.1", "sha256": "00" },
            { "name": "distribution", "is_default": false, "release": "6.1.0-38-cloud-amd64", "size": 8_388_608,
              "discovery": "acpi", "created_at": ago(120), "source": "linux-image-cloud-amd64", "sha256": "00" },
        ]}),
        "/templates" => json!({
            "templates": [{ "name": "linux-default", "image": "debian-python", "description": "a line of text" }],
            "failed": [{ "name": "bad", "reason": hostile }],
        }),
        "/snapshots" => json!({ "snapshots": snapshots }),
        "/snapshots+golden" => {
            let changes = json!({ "id": "zzzzzzzzzzzzzzzzzzzz", "golden": true });
            let all: Vec<Value> = [snapshot("golden-1", &changes)].into_iter().chain(snapshots).collect();
            json!({ "snapshots": all })
        }
        "/snapshots/statistics" => json!({
            "total_snapshots": 3, "golden_snapshots": 1, "total_size_bytes": 25_165_824, "golden_size_bytes": 8_388_608, "vms_with_snapshots": 1,
            "oldest_snapshot": "2026-01-01T00:00:00.000-05:00", "newest_snapshot": null
        }),
        "/templates/code/golden" => json!({ "versions": [
            { "current": true, "snapshot": snapshot("golden-2", &json!({ "golden": true })) },
            { "current": false, "snapshot": snapshot("golden-1", &json!({ "golden": true })) },
        ]}),
        "/system/doctor" => json!({ "checks": [
            { "name": "accelerator", "status": "warning", "detail": "TCG", "advice": "run it where KVM is" },
            { "name": "qemu", "status": "failed", "detail": hostile, "advice": null },
            { "name": "disk", "status": "ok", "detail": "21 GiB free", "advice": null },
        ], "hypervisor": null }),
        _ => Value::Null,
    }
}

/// Answers one connection until it ends.
fn serve(stream: &UnixStream) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        let path = path.strip_prefix(microvm_api::PREFIX).unwrap_or(path);
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) < 3 {
                break;
            }
        }
        line.clear();
        let golden = query.contains("golden=true");
        let body =
            answer(if golden && path == "/snapshots" { "/snapshots+golden" } else { path }).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        if stream.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn every_table_is_as_committed() {
    let home = tempfile::tempdir().unwrap();
    let run = home.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).unwrap();
    let listener = UnixListener::bind(run.join("api.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream));
        }
    });
    let tables = [
        ("ls", &["ls"][..], 0),
        ("ps", &["ps", "dev"], 0),
        ("ps-all", &["ps", "--all", "dev"], 0),
        ("pool-ls", &["pool", "ls"], 0),
        ("image-ls", &["image", "ls"], 0),
        ("kernel-ls", &["kernel", "ls"], 0),
        ("template-ls", &["template", "ls"], 1),
        ("snapshot-ls", &["snapshot", "ls"], 0),
        ("snapshot-tree", &["snapshot", "tree"], 0),
        ("snapshot-stats", &["snapshot", "stats"], 0),
        ("golden-ls", &["golden", "ls", "code"], 0),
        ("golden-ls-all", &["golden", "ls"], 0),
        ("doctor", &["doctor"], 106),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables");
    let mut changed = Vec::new();
    for (name, arguments, code) in tables {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(arguments).env_clear().env("MICROVM_ROOT", home.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let text = String::from_utf8(output.stdout).unwrap().replace(home.path().to_str().unwrap(), "ROOT");
        assert_eq!(output.status.code(), Some(code), "{name}: {told}{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{name}: {text:?}");
        let file = folder.join(format!("{name}.txt"));
        if std::env::var_os("MICROVM_UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, &text).unwrap();
        }
        if std::fs::read_to_string(&file).unwrap_or_default() != text {
            changed.push(format!("{name}:\n{text}"));
        }
    }
    assert!(changed.is_empty(), "changed (MICROVM_UPDATE_SNAPSHOTS=1 keeps that):\n{}", changed.join("\n"));
}
