//! What pools make, replace and remove by themselves, on fakes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
#[path = "support/pools.rs"]
mod pools;
mod support;

use std::collections::BTreeSet;

use branches::vm;
use microvm_core::{AcquireRequest, PoolChange, PoolRequest, Tier};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::hypervisor::MachineExit;
use microvm_types::Phase;
use pools::{everything, filled, pool, take};
use support::{Host, code, named, until};

#[test]
fn a_pool_never_has_more_than_its_maximum() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    for min in [0, 1, 3] {
        server.run(async {
            service.pools.create(pool("py", min, 3)).await.unwrap();
            // At once, while it is being filled.
            let wishes = (0..8).map(|_| service.pools.acquire("py", AcquireRequest::default()));
            let got = futures::future::join_all(wishes).await;
            let (good, bad): (Vec<_>, Vec<_>) = got.into_iter().partition(Result::is_ok);
            assert_eq!(good.len(), 3, "min {min}: {bad:?}");
            assert!(bad.into_iter().all(|error| code(error) == "pool_exhausted"));
            until("the rest is gone", || everything(service).len() == 3).await;
            assert_eq!(service.pools.get("py").unwrap().handed_out, 3);
            // Room is made by deleting one.
            let first = good[0].as_ref().unwrap().0.record.id.clone();
            service.vms.delete(&first.into(), false).await.unwrap();
            take(service, "next").await.unwrap();
            assert_eq!(code(take(service, "more").await), "pool_exhausted");
            service.pools.resize("py", PoolChange { max: Some(4), ..PoolChange::default() }).await.unwrap();
            take(service, "more").await.unwrap();
            service.pools.remove("py").await.unwrap();
            for left in everything(service) {
                let _ = service.vms.delete(&left.record.id.into(), false).await;
            }
            until("all are gone", || everything(service).is_empty()).await;
        });
    }
}

#[test]
fn an_empty_pool_forks_and_without_branches_it_boots() {
    for branches in [true, false] {
        let host = Host::with_golden();
        if !branches {
            host.hypervisor.forget_branching();
        }
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.pools.create(pool("py", 0, 2)).await.unwrap();
            let (_, tier) = take(service, "a").await.unwrap();
            assert_eq!(tier, if branches { Tier::Fork } else { Tier::Boot });
            service.pools.resize("py", PoolChange { min: Some(1), ..PoolChange::default() }).await.unwrap();
            filled(service, "py", 1).await;
            assert_eq!(take(service, "b").await.unwrap().1, Tier::Pool);
        });
    }
}

#[test]
fn a_vm_that_fails_before_it_waits_is_never_handed_out() {
    // Two commands have warmed the golden snapshot up, and one has proved it, before the pool's first VM runs its own two.
    for (step, done_before) in
        [(Operation::Identify, 0), (Operation::Exec, 3), (Operation::Exec, 4), (Operation::Pause, 0)]
    {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            host.hypervisor.script().after(step, done_before, Fault::Fail);
            service.pools.create(pool("py", 1, 2)).await.unwrap();
            let view = filled(service, "py", 1).await;
            assert_eq!((view.waiting, view.failure), (1, None), "{step:?}");
            assert_eq!(everything(service).len(), 1, "{step:?}: the unfit one is kept");
            assert_eq!(host.hypervisor.machines().len(), 1, "{step:?}: a machine is left");
            // The golden snapshot's machine, the one that proved it, the unfit one, and the one that waits.
            assert_eq!(host.hypervisor.script().calls(Operation::Launch), 4, "{step:?}: nothing was unfit");
            assert_eq!(take(service, "mine").await.unwrap().1, Tier::Pool);
        });
    }
}

#[test]
fn dead_and_old_ones_are_replaced() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let request = PoolRequest { max_age_seconds: Some(60), ..pool("py", 2, 4) };
        service.pools.create(request).await.unwrap();
        filled(service, "py", 2).await;
        let ids = || -> BTreeSet<_> { everything(service).into_iter().map(|vm| vm.record.id).collect() };
        let first = ids();
        // One dies while it waits: nobody has to come for it to be noticed.
        let dead = first.first().unwrap().clone();
        assert!(host.hypervisor.end(&dead, MachineExit::Vmm("killed by signal 9".into())));
        until("the dead one is replaced", || {
            let now = ids();
            !now.contains(&dead) && now.len() == 2 && service.pools.get("py").unwrap().waiting == 2
        })
        .await;
        let second = ids();
        host.clock.advance(59_000);
        service.pools.resize("py", PoolChange::default()).await.unwrap();
        assert_eq!(ids(), second);
        host.clock.advance(2_000);
        service.pools.resize("py", PoolChange::default()).await.unwrap();
        until("the old ones are replaced", || {
            let now = ids();
            now.is_disjoint(&second) && now.len() == 2 && service.pools.get("py").unwrap().waiting == 2
        })
        .await;
        assert_eq!(take(service, "mine").await.unwrap().1, Tier::Pool);
    });
}

#[test]
fn what_cannot_be_made_is_told_and_tried_again() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("golden-maker")).await.unwrap();
        host.hypervisor.script().next(Operation::Exec, Fault::Fail);
        service.pools.create(pool("py", 1, 1)).await.unwrap();
        until("the failure is told", || service.pools.get("py").unwrap().failure.is_some()).await;
        let failure = service.pools.get("py").unwrap().failure.unwrap();
        assert!(failure.contains("planned"), "{failure}");
        let view = filled(service, "py", 1).await;
        assert_eq!(view.failure, None, "a success clears it");
        until("the failed one is gone", || everything(service).len() == 2).await;
    });
}

#[test]
fn a_vm_that_is_given_back_is_deleted_and_replaced_unless_enough_wait() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.pools.create(pool("py", 1, 2)).await.unwrap();
        filled(service, "py", 1).await;
        let (mine, _) = take(service, "mine").await.unwrap();
        filled(service, "py", 1).await;
        // Enough wait: nothing takes its place.
        assert!(!service.pools.release("py", &vm("mine")).await.unwrap());
        let left = everything(service);
        assert!(left.len() == 1 && left[0].record.id != mine.record.id, "{left:?}");
        // The pool is full while both are handed out; what is given back makes room.
        take(service, "one").await.unwrap();
        filled(service, "py", 1).await;
        take(service, "two").await.unwrap();
        assert_eq!(code(take(service, "three").await), "pool_exhausted");
        assert!(service.pools.release("py", &vm("one")).await.unwrap());
        filled(service, "py", 1).await;
        assert!(take(service, "three").await.is_ok());
        service.vms.create(named("other")).await.unwrap();
        assert_eq!(code(service.pools.release("py", &vm("other")).await), "invalid_field");
        assert_eq!(service.vms.get(&vm("other")).unwrap().record.phase(), Phase::Running);
    });
}
