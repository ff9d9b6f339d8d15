//! Records of the program at the tag `issue-9-start` are read by this one: VMs of every kind, snapshots and pools.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, snap, vm};
use microvm_core::{AcquireRequest, PoolRequest, SnapshotFilter, Tier};
use microvm_ports::{DocumentKind, SnapshotStore, StateStore};
use microvm_types::snapshot::{SnapshotPurpose, SnapshotRecord};
use microvm_types::template::Overrides;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, VmId};
use serde_json::{Value, json};
use support::{Host, named, until};

/// A record of that program, with what only this run can know filled in.
fn record(name: &str, fill: Value) -> Value {
    let path = format!("{}/tests/fixtures/issue-9-start/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (key, value) in fill.as_object().unwrap() {
        assert!(record.get(key).is_some(), "{name} has no {key}");
        record[key] = value.clone();
    }
    record
}

/// A machine, a state and a directory are of this run; everything else is as it was stored.
fn of_this_run(now: &VmRecord) -> Value {
    json!({ "id": now.id, "machine": now.machine, "epoch": now.epoch, "image_digest": now.image_digest })
}

async fn put(host: &Host, record: Value) {
    let record: VmRecord = serde_json::from_value(record).unwrap();
    host.store.update_vm(&record).await.unwrap();
}

#[test]
fn a_root_of_the_program_before_this_work_is_taken_over() {
    let host = Host::with_golden();
    let server = host.serve();
    let all = &server.service;
    let mut waiting: Option<VmId> = None;
    server.run(async {
        for name in ["web", "asleep", "still", "held"] {
            all.vms.create(named(name)).await.unwrap();
        }
        all.vms.hibernate(&vm("asleep")).await.unwrap();
        all.vms.stop(&vm("still"), true, None).await.unwrap();
        all.vms.pause(&vm("held")).await.unwrap();
        snap(all, "web", "good").await.unwrap();
        let (template, overrides, name) = (None, Overrides::default(), "warm".parse().unwrap());
        let pool = PoolRequest {
            name,
            template,
            overrides,
            min: 1,
            max: 2,
            max_age_seconds: None,
            labels: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
        };
        all.pools.create(pool).await.unwrap();
        until("it waits", || all.pools.get("warm").unwrap().waiting == 1).await;
        let shown =
            microvm_core::VmFilter { waiting: true, phases: vec![Phase::Pooled], ..Default::default() };
        waiting = all.vms.list(&shown).unwrap().pop().map(|vm| vm.record.id);
        server.engine.close().await;
        let stored = host.store.vms().await.unwrap().records;
        for now in &stored {
            let mut fill = of_this_run(now);
            let kind = match now.name.as_str() {
                "web" => "running",
                "asleep" => {
                    fill["rest"] = json!({ "kind": "asleep", "snapshot": now.life.asleep().unwrap() });
                    "hibernated"
                }
                "still" => "stopped",
                "held" => "paused",
                _ => {
                    fill["name"] = json!(now.name);
                    "pooled"
                }
            };
            put(&host, record(kind, fill)).await;
        }
        host.store.put_document(DocumentKind::Pool, "warm", &record("pool", json!({}))).await.unwrap();
        // Records of snapshots are in their own files, which this program has written here: each kind is read apart.
        for found in host.storage.snapshots().await.unwrap() {
            let info = found.unwrap();
            let now: SnapshotRecord = serde_json::from_value(info.description.record.clone()).unwrap();
            let kind = match now.purpose {
                SnapshotPurpose::User => "snapshot",
                SnapshotPurpose::Golden { .. } => "golden",
                SnapshotPurpose::Hibernation => "sleep",
            };
            let fill =
                json!({ "id": now.id, "vm": now.vm, "image_digest": now.image_digest, "epoch": now.epoch });
            let read: SnapshotRecord = serde_json::from_value(record(kind, fill)).unwrap();
            assert_eq!(std::mem::discriminant(&read.purpose), std::mem::discriminant(&now.purpose), "{kind}");
        }
    });
    drop(server);
    host.forget_records();

    let server = host.serve();
    let all = &server.service;
    server.run(async {
        let phase = |name: &str| all.vms.get(&vm(name)).unwrap().record.phase();
        until("its agent answers", || all.vms.get(&vm("web")).unwrap().agent.is_some()).await;
        let phases = ["web", "asleep", "still", "held"].map(phase);
        assert_eq!(phases, [Phase::Running, Phase::Hibernated, Phase::Stopped, Phase::Paused]);
        let web = all.vms.get(&vm("web")).unwrap().record;
        assert_eq!((web.labels["team"].as_str(), web.metadata["ticket"].as_str()), ("red", "4711"));
        assert_eq!((web.limits.idle_seconds, web.created_by.as_str()), (Some(86_400), ""));
        assert_eq!(all.snapshots.list(&SnapshotFilter { vm: None, golden: true }).unwrap().len(), 2);
        all.branches.fork(&vm("web"), forks(1, "child")).await.unwrap();
        for name in ["asleep", "still"] {
            all.vms.start(&vm(name)).await.unwrap();
        }
        all.vms.resume(&vm("held")).await.unwrap();
        assert_eq!(["asleep", "still", "held"].map(phase), [Phase::Running; 3]);
        until("it waits", || all.pools.get("warm").unwrap().waiting == 1).await;
        let (acquired, tier) = all.pools.acquire("warm", AcquireRequest::default()).await.unwrap();
        assert_eq!((tier, Some(acquired.record.id)), (Tier::Pool, waiting));
    });
}
