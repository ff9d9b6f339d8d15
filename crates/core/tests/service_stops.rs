//! How often requests enter storage: everything is found once and carried.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::collections::HashMap;

use branches::{forks, restored, snap, vm};
use microvm_core::{AcquireRequest, BootChoice, CreateRequest, PoolRequest};
use microvm_driver_fake::Operation::{self, *};
use microvm_types::template::Overrides;
use support::{Host, Server, named, until};

/// A server that has looked for old golden snapshots, as each does when it starts.
fn served(host: &Host) -> Server {
    let server = host.serve();
    let looked = || [Image, Kernel].iter().all(|one| host.storage.script().calls(*one) == 1);
    server.run(until("it has looked", looked));
    server
}

/// Calls of storage in `work`.
fn calls(host: &Host, work: impl FnOnce()) -> HashMap<Operation, u64> {
    let before = host.storage.script().all_calls();
    work();
    let mut calls = host.storage.script().all_calls();
    calls.retain(|operation, count| {
        *count -= before.get(operation).copied().unwrap_or(0);
        *count > 0
    });
    calls
}

fn once(operations: &[Operation]) -> HashMap<Operation, u64> {
    operations.iter().map(|operation| (*operation, 1)).collect()
}

#[test]
fn create_finds_what_it_needs_once_and_makes_its_files_once() {
    let host = Host::with_golden();
    let server = served(&host);
    let create = |request: CreateRequest| {
        calls(&host, || drop(server.run(server.service.vms.create(request)).unwrap()))
    };
    // One stop that finds (image beside kernel), one that makes files (beside memory); the end of it is noted beside the row.
    let cold = CreateRequest { boot: BootChoice::Cold, ..named("cold") };
    assert_eq!(create(cold), once(&[Image, Kernel, CreateFiles, ZeroMemory, KeepRecord]));
    let stopped = CreateRequest { start: false, ..named("stopped") };
    assert_eq!(create(stopped), once(&[Image, Kernel, CreateFiles, ZeroMemory, KeepRecord]));
    create(named("first"));
    assert_eq!(create(named("second")), once(&[Image, Kernel, SnapshotSource, CreateFiles, KeepRecord]));
}

#[test]
fn a_start_finds_once() {
    let host = Host::new();
    let server = served(&host);
    let stopped = CreateRequest { start: false, ..named("web") };
    server.run(server.service.vms.create(stopped)).unwrap();
    let started = calls(&host, || drop(server.run(server.service.vms.start(&vm("web"))).unwrap()));
    assert_eq!(started, once(&[Image, Kernel, FindFiles, ZeroMemory, KeepRecord]));
    server.run(server.service.vms.hibernate(&vm("web"))).unwrap();
    let woken = calls(&host, || drop(server.run(server.service.vms.start(&vm("web"))).unwrap()));
    let removed = [(RemoveSnapshot, 1)];
    let mut wanted = once(&[Image, SnapshotSource, ResetFiles, KeepRecord]);
    wanted.extend(removed);
    assert_eq!(woken, wanted);
}

#[test]
fn a_fork_looks_at_its_parent_once_and_at_the_image_once_for_all_children() {
    let host = Host::new();
    let server = served(&host);
    server.run(server.service.vms.create(named("web"))).unwrap();
    let forked = calls(&host, || {
        drop(server.run(server.service.branches.fork(&vm("web"), forks(3, "child-{n}"))).unwrap());
    });
    let children = [(CreateFiles, 3), (KeepRecord, 3)];
    let mut wanted = once(&[Image, FindFiles, PrepareOverlays, ForkPoint]);
    wanted.extend(children);
    assert_eq!(forked, wanted);
    let taken = calls(&host, || drop(server.run(snap(&server.service, "child-1", "good")).unwrap()));
    assert_eq!(taken, once(&[FindFiles, PrepareOverlays, WriteSnapshot]));
    let restored = calls(&host, || {
        drop(server.run(server.service.branches.restore("good", restored("again"))).unwrap());
    });
    assert_eq!(restored, once(&[Image, SnapshotSource, CreateFiles, KeepRecord]));
}

#[test]
fn a_vm_of_a_pool_is_handed_out_with_no_more_of_storage_than_its_record() {
    let host = Host::new();
    let server = served(&host);
    let (template, overrides) = (None, Overrides::default());
    let name = "warm".parse().unwrap();
    let pool = PoolRequest {
        name,
        template,
        overrides,
        min: 1,
        max: 1,
        max_age_seconds: None,
        labels: std::collections::BTreeMap::new(),
        metadata: std::collections::BTreeMap::new(),
    };
    server.run(async {
        server.service.pools.create(pool).await.unwrap();
        until("it waits", || server.service.pools.get("warm").unwrap().waiting == 1).await;
    });
    let acquired = calls(&host, || {
        server.run(async {
            let (vm, _) = server.service.pools.acquire("warm", AcquireRequest::default()).await.unwrap();
            // The record is kept behind the answer and before anything else is done with the VM.
            server.service.vms.pause(&vm.record.id.into()).await.unwrap();
        });
    });
    assert_eq!(acquired, once(&[KeepRecord]));
}
