//! Bad days of the database: killed writers, damaged rows, newer schemas, loose permissions.
#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach helpers of integration tests.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use camino::Utf8PathBuf;
use microvm_conformance::state_store::sample_record;
use microvm_driver_database::{OpenError, SCHEMA_VERSION, SqliteStore};
use microvm_ports::StateStore;
use sqlx::{Connection, SqliteConnection};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Set for the child of [`a_killed_writer_loses_nothing_it_reported`]: the database it writes to.
const CHILD_DATABASE: &str = "MICROVM_TEST_CHILD_DATABASE";

struct Scene {
    _directory: tempfile::TempDir,
    path: Utf8PathBuf,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(directory.path().join("state.db")).unwrap();
    Scene { _directory: directory, path }
}

async fn raw(scene: &Scene, sql: &'static str) {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", scene.path)).await.unwrap();
    assert!(
        sqlx::query(sql).execute(&mut connection).await.unwrap().rows_affected() > 0,
        "{sql} changed nothing"
    );
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_row_is_named() {
    let scene = scene();
    let store = SqliteStore::open(&scene.path).await.unwrap();
    store.insert_vm(&sample_record(1, "good")).await.unwrap();
    store.insert_vm(&sample_record(2, "bad")).await.unwrap();
    raw(&scene, "UPDATE vms SET record = replace(record, '\"epoch\":1', '\"epoch\":2') WHERE name = 'bad'")
        .await;
    let stored = store.vms().await.unwrap();
    assert_eq!(stored.records, [sample_record(1, "good")], "the others are still read");
    let [(id, reason)] = &stored.unreadable[..] else { panic!("{stored:?}") };
    assert_eq!(*id, sample_record(2, "bad").id.to_string());
    assert!(reason.contains("damaged"), "{reason}");
    store.delete_vm(&sample_record(2, "bad").id).await.unwrap();
    assert_eq!(store.vms().await.unwrap().records, [sample_record(1, "good")]);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let scene = scene();
    SqliteStore::open(&scene.path).await.unwrap().close().await;
    raw(&scene, "INSERT INTO schema_version (version) VALUES (99)").await;
    for _ in 0..2 {
        let error = SqliteStore::open(&scene.path).await.unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 99, known: SCHEMA_VERSION, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let scene = scene();
    let text = "this is somebody's letter, not a database. ".repeat(100);
    std::fs::write(&scene.path, &text).unwrap();
    let error = SqliteStore::open(&scene.path).await.unwrap_err();
    assert!(matches!(error, OpenError::Open { .. }), "{error}");
    // What becomes of the VMs is said before anybody takes it away.
    let said = error.to_string();
    assert!(
        said.contains("put a copy") && said.contains("leaves their disks") && !said.contains("move it away"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&scene.path).unwrap(), text);
}

#[tokio::test]
async fn a_missing_directory_is_an_error_with_the_path() {
    let error = SqliteStore::open("/nonexistent/state.db".into()).await.unwrap_err();
    assert!(matches!(error, OpenError::Create { .. }) && error.to_string().contains("/nonexistent/state.db"));
}

#[tokio::test]
async fn only_the_owner_may_read_it() {
    let scene = scene();
    std::fs::write(&scene.path, "").unwrap();
    std::fs::set_permissions(&scene.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open(&scene.path).await.unwrap();
    store.insert_vm(&sample_record(1, "one")).await.unwrap();
    for entry in std::fs::read_dir(scene.path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[tokio::test]
async fn two_that_open_a_new_database_at_once_both_succeed() {
    let scene = scene();
    let outcomes = tokio::join!(
        SqliteStore::open(&scene.path),
        SqliteStore::open(&scene.path),
        SqliteStore::open(&scene.path),
        SqliteStore::open(&scene.path)
    );
    let store = outcomes.0.unwrap();
    for other in [outcomes.1, outcomes.2, outcomes.3] {
        other.unwrap();
    }
    store.insert_vm(&sample_record(1, "one")).await.unwrap();
}

/// The child: writes rows for ever and says each number after its write was reported as done.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD_DATABASE) else { return };
    let store = SqliteStore::open(path.as_str().into()).await.unwrap();
    for number in 0.. {
        store.insert_vm(&sample_record(number, &format!("vm-{number}"))).await.unwrap();
        let mut record = sample_record(number, &format!("vm-{number}"));
        record.epoch = 5;
        store.update_vm(&record).await.unwrap();
        println!("done {number}");
    }
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_it_reported() {
    for rows_before_kill in [1, 7, 23] {
        let scene = scene();
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD_DATABASE, scene.path.as_str())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut reported = 0;
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("done ") {
                reported += 1;
            }
            if reported == rows_before_kill {
                child.start_kill().unwrap();
            }
        }
        child.wait().await.unwrap();
        assert!(reported >= rows_before_kill, "the child ended early after {reported} rows");
        let store = SqliteStore::open(&scene.path).await.unwrap();
        let rows = store.vms().await.unwrap().records;
        assert!(rows.len() >= reported, "{reported} rows were reported, {} are there", rows.len());
        assert!(rows.iter().take(reported).all(|row| row.epoch == 5), "a reported update is missing");
        store.insert_vm(&sample_record(1_000_000, "after")).await.unwrap();
    }
}
