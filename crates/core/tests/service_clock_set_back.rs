//! A clock that is set back confuses no snapshot, pool or limit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::time::Duration;

use branches::{names, restored, snap, vm};
use microvm_core::{AcquireRequest, PoolRequest, Services, VmFilter};
use microvm_types::Phase;
use microvm_types::template::Overrides;
use microvm_types::vm::Limits;
use support::{Host, named, say, until};

const HOUR_MS: i64 = 3_600_000;

#[test]
fn a_clock_that_is_set_back_confuses_no_snapshot() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for name in ["first", "second"] {
            snap(service, "dev", name).await.unwrap();
            host.clock.advance(1000);
        }
        // To before the VM was made.
        host.clock.advance(-24 * HOUR_MS);
        snap(service, "dev", "third").await.unwrap();
        assert_eq!(names(service), ["first", "second", "third"], "the newest one is last");
        // Nothing is older than it is: what lies in the future has no age.
        let pruned =
            service.snapshots.prune(None, Some(Duration::from_secs(60)), true).await.unwrap().removed;
        assert_eq!(pruned, [], "nothing is a minute old");
        let pruned = service.snapshots.prune(Some(1), None, true).await.unwrap().removed;
        assert_eq!(pruned.len(), 2);
        assert_eq!(names(service), ["third"], "the newest one stays");
        // A VM keeps the newest ones, whatever the clock says.
        for number in 0..12 {
            host.clock.advance(-HOUR_MS);
            snap(service, "dev", &format!("s-{number}")).await.unwrap();
        }
        let kept = names(service);
        assert_eq!((kept.len(), kept.last().unwrap().as_str()), (10, "s-11"), "{kept:?}");
        assert_eq!(kept[0], "s-2");
        let copy = service.branches.restore("s-11", restored("copy")).await.unwrap().remove(0);
        assert!(copy.record.created_ms <= copy.record.updated_ms);
        service.branches.rollback(&vm("dev"), "s-5").await.unwrap();
        assert_eq!(say(service, "dev", "hostname").await, "dev");
    });
    drop(server);
    // The order is that of the files too.
    let next = host.serve();
    next.run(async {
        snap(&next.service, "dev", "after-restart").await.unwrap();
        let kept = names(&next.service);
        assert_eq!((kept[0].as_str(), kept.last().unwrap().as_str()), ("s-3", "after-restart"));
    });
}

#[test]
fn a_clock_that_is_set_back_confuses_no_golden_snapshot() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for _ in 0..4 {
            host.clock.advance(-HOUR_MS);
            let made = service.goldens.update("linux-default").await.unwrap().snapshot.record.id;
            let versions = service.goldens.versions("linux-default").await.unwrap();
            let current: Vec<_> = versions.iter().filter(|version| version.current).collect();
            assert_eq!(current.len(), 1);
            assert_eq!(current[0].snapshot.record.id, made, "the version just made is the current one");
            assert_eq!(versions.last().unwrap().snapshot.record.id, made);
        }
    });
}

#[test]
fn a_clock_that_is_set_back_ends_no_vm_and_keeps_none_for_ever() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let mut idle = named("idle");
        idle.vm.limits = Limits { idle_seconds: Some(1), ..Limits::default() };
        service.vms.create(idle).await.unwrap();
        let mut long = named("long");
        long.vm.limits =
            Limits { lifetime_seconds: Some(3600), idle_seconds: Some(3600), ..Limits::default() };
        service.vms.create(long).await.unwrap();
        host.clock.advance(-24 * HOUR_MS);
        // Looked at anew with the clock as it is; the other one was last used in what is the future now.
        assert_eq!(say(service, "long", "hostname").await, "long");
        // Idle for its second, not for a day; the clock of the test stands still, so it is moved like a real one.
        until("the idle one is stopped", || {
            host.clock.advance(1);
            service.vms.get(&vm("idle")).unwrap().record.phase() == Phase::Stopped
        })
        .await;
        assert_eq!(service.vms.get(&vm("long")).unwrap().record.phase(), Phase::Running);
    });
}

#[test]
fn a_clock_that_is_set_back_keeps_pools_as_they_are() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let request = PoolRequest {
            name: "py".parse().unwrap(),
            template: None,
            overrides: Overrides::default(),
            min: 2,
            max: 4,
            max_age_seconds: Some(60),
            labels: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
        };
        service.pools.create(request).await.unwrap();
        let waiting = |service: &Services| {
            let all = service.vms.list(&VmFilter { waiting: true, ..VmFilter::default() }).unwrap();
            all.into_iter().map(|vm| vm.record.id).collect::<Vec<_>>()
        };
        let full =
            |count| service.pools.get("py").is_ok_and(|view| view.waiting == count && view.filling == 0);
        until("the pool is full", || full(2)).await;
        let before = waiting(service);
        host.clock.advance(-24 * HOUR_MS);
        // One more is wanted: when it is there, the others have been looked at with the clock as it is now.
        let more = |min| microvm_core::PoolChange { min: Some(min), ..microvm_core::PoolChange::default() };
        service.pools.resize("py", more(3)).await.unwrap();
        until("the pool is full", || full(3)).await;
        let now = waiting(service);
        assert!(before.iter().all(|id| now.contains(id)), "those that waited are not too old");
        // Their age counts from there: not from a day ahead.
        host.clock.advance(61_000);
        service.pools.resize("py", more(2)).await.unwrap();
        let replaced = || full(2) && waiting(service).iter().all(|id| !now.contains(id));
        until("all were replaced", replaced).await;
        let (taken, _) = service.pools.acquire("py", AcquireRequest::default()).await.unwrap();
        assert_eq!(say(service, taken.record.name.as_str(), "echo fine").await, "fine");
    });
}
