//! Pools on fakes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
#[path = "support/pools.rs"]
mod pools;
mod support;

use std::collections::BTreeSet;

use branches::vm;
use microvm_core::{AcquireRequest, PoolChange, PoolRequest, ServiceError, Tier, VmFilter};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::{DocumentKind, StateStore as _};
use microvm_types::Phase;
use pools::{everything, filled, pool, take};
use support::{Host, code, named, say, until};

#[test]
fn a_pool_is_filled_and_hands_out_vms_of_their_own() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.pools.create(pool("py", 3, 5)).await.unwrap();
        filled(service, "py", 3).await;
        assert!(service.vms.list(&VmFilter::default()).unwrap().is_empty(), "waiting VMs are nobody's");
        assert!(everything(service).iter().all(|vm| vm.record.phase() == Phase::Pooled));
        // Beside the identity that comes with the channel, each had one and two commands as whoever gets it will; two
        // more commands warmed up the golden snapshot, and one proved it.
        let calls = |operation| host.hypervisor.script().calls(operation);
        assert_eq!((calls(Operation::Identify), calls(Operation::Exec)), (3, 3 * 2 + 3));
        let launched = host.hypervisor.script().calls(Operation::Launch);
        let mut request = AcquireRequest { name: Some("mine".parse().unwrap()), ..AcquireRequest::default() };
        request.vm.labels.insert("owner".into(), "me".into());
        let (made, tier) = service.pools.acquire("py", request).await.unwrap();
        assert_eq!((tier, made.record.phase()), (Tier::Pool, Phase::Running));
        assert_eq!((made.record.name.as_str(), made.record.labels["owner"].as_str()), ("mine", "me"));
        let member = made.record.pool.clone().unwrap();
        assert!(!member.waiting && member.pool.as_str() == "py");
        let said = say(service, "mine", "hostname; cat /etc/machine-id").await;
        assert_eq!(said, format!("mine\n{:032x}", made.record.id.as_u128()));
        // It is replaced, and never waits again.
        let view = filled(service, "py", 3).await;
        assert_eq!((view.handed_out, host.hypervisor.script().calls(Operation::Launch)), (1, launched + 1));
        service.vms.pause(&vm("mine")).await.unwrap();
        service.pools.resize("py", PoolChange::default()).await.unwrap();
        for number in 0..3 {
            let (other, _) = take(service, &format!("other-{number}")).await.unwrap();
            assert_ne!(other.record.id, made.record.id);
        }
    });
}

#[test]
fn many_acquires_at_once_get_different_vms() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.pools.create(pool("py", 4, 20)).await.unwrap();
        filled(service, "py", 4).await;
        let wishes = (0..16).map(|_| service.pools.acquire("py", AcquireRequest::default()));
        let got = futures::future::join_all(wishes).await;
        let got: Vec<_> = got.into_iter().map(Result::unwrap).collect();
        let ids: BTreeSet<_> = got.iter().map(|(vm, _)| vm.record.id.clone()).collect();
        assert_eq!(ids.len(), 16, "a VM was handed out twice");
        assert!(got.iter().filter(|(_, tier)| *tier == Tier::Pool).count() >= 4);
        let mut said = BTreeSet::new();
        for id in &ids {
            let name = service.vms.get(&id.clone().into()).unwrap().record.name;
            said.insert(say(service, name.as_str(), "hostname; cat /proc/sys/kernel/random/uuid").await);
        }
        assert_eq!(said.len(), 16);
        let view = filled(service, "py", 4).await;
        assert_eq!(view.handed_out, 16);
    });
}

#[test]
fn a_waiting_vm_that_is_not_fit_is_removed_and_the_next_taken() {
    for step in [Operation::Identify, Operation::Resume] {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.pools.create(pool("py", 2, 2)).await.unwrap();
            filled(service, "py", 2).await;
            let before: Vec<_> = everything(service).into_iter().map(|vm| vm.record.id).collect();
            host.hypervisor.script().next(step, Fault::Fail);
            let (made, tier) = take(service, "mine").await.unwrap();
            assert_eq!((tier, made.record.name.as_str()), (Tier::Pool, "mine"), "{step:?}");
            assert_eq!(say(service, "mine", "hostname").await, "mine");
            let view = filled(service, "py", 1).await;
            assert_eq!(view.handed_out, 1);
            let gone = before.iter().filter(|id| service.vms.get(&(*id).clone().into()).is_err()).count();
            assert_eq!(gone, 1, "{step:?}: the unfit one is kept");
            assert_eq!(host.hypervisor.machines().len(), 2, "{step:?}: a machine is left");
        });
    }
}

#[test]
fn a_name_that_is_taken_costs_no_vm() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("taken")).await.unwrap();
        service.pools.create(pool("py", 1, 2)).await.unwrap();
        filled(service, "py", 1).await;
        let id = everything(service).into_iter().find(|vm| vm.record.name.as_str() != "taken").unwrap();
        assert_eq!(code(take(service, "taken").await), "vm_name_taken");
        assert_eq!(take(service, "mine").await.unwrap().0.record.id, id.record.id);
    });
}

#[test]
fn impossible_pools_are_refused() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let make = async |request| code(service.pools.create(request).await);
        assert_eq!(make(pool("py", 2, 1)).await, "invalid_field");
        assert_eq!(make(pool("py", 0, 0)).await, "invalid_field");
        assert_eq!(make(pool("py", 0, 1_001)).await, "over_limit");
        assert_eq!(make(PoolRequest { max_age_seconds: Some(0), ..pool("py", 1, 1) }).await, "invalid_field");
        let nowhere = PoolRequest { template: Some("none".into()), ..pool("py", 1, 1) };
        assert_eq!(make(nowhere).await, "template_not_found");
        assert!(service.pools.list().unwrap().is_empty());
        service.pools.create(pool("py", 1, 1)).await.unwrap();
        assert_eq!(make(pool("py", 1, 1)).await, "pool_name_taken");
        let change = PoolChange { min: Some(2), ..PoolChange::default() };
        assert_eq!(code(service.pools.resize("py", change).await), "invalid_field");
        assert_eq!(service.pools.get("py").unwrap().record.min, 1);
        assert_eq!(code(service.pools.acquire("none", AcquireRequest::default()).await), "pool_not_found");
    });
}

#[test]
fn a_pool_that_goes_leaves_what_was_handed_out() {
    for rounds in 0..10 {
        let host = Host::with_golden();
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            service.pools.create(pool("py", 3, 4)).await.unwrap();
            filled(service, "py", 3).await;
            take(service, "mine").await.unwrap();
            // At every point of the refill.
            for _ in 0..rounds * 7 {
                tokio::task::yield_now().await;
            }
            service.pools.remove("py").await.unwrap();
            until("only the handed out one is left", || {
                let left = everything(service);
                left.len() == 1 && left[0].record.name.as_str() == "mine"
            })
            .await;
            assert_eq!(say(service, "mine", "hostname").await, "mine");
            assert_eq!(code(service.pools.get("py")), "pool_not_found");
            service.vms.delete(&vm("mine"), false).await.unwrap();
            // Nothing is made afterwards.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(everything(service).is_empty());
        });
        drop(server);
        host.assert_empty("after the pool");
    }
}

#[test]
fn the_image_of_waiting_vms_is_in_use() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.pools.create(pool("py", 1, 1)).await.unwrap();
        filled(service, "py", 1).await;
        assert_eq!(code(service.catalog.remove_image("debian-python").await), "in_use");
        assert_eq!(take(service, "mine").await.unwrap().1, Tier::Pool);
    });
}

#[test]
fn waiting_vms_are_taken_up_by_the_next_server() {
    let host = Host::with_golden();
    let first = host.serve();
    let (waiting, mine) = first.run(async {
        let service = &first.service;
        service.pools.create(pool("py", 2, 3)).await.unwrap();
        filled(service, "py", 2).await;
        let (mine, _) = take(service, "mine").await.unwrap();
        filled(service, "py", 2).await;
        let ids: BTreeSet<_> = everything(service).into_iter().map(|vm| vm.record.id).collect();
        (ids, mine.record.id)
    });
    drop(first);
    let second = host.serve();
    let service = &second.service;
    second.run(async {
        let view = filled(service, "py", 2).await;
        assert_eq!((view.record.min, view.record.max, view.handed_out), (2, 3, 1));
        let ids: BTreeSet<_> = everything(service).into_iter().map(|vm| vm.record.id).collect();
        assert_eq!(ids, waiting, "they were made anew");
        let (next, tier) = take(service, "next").await.unwrap();
        assert_eq!(tier, Tier::Pool);
        assert!(waiting.contains(&next.record.id) && next.record.id != mine);
        for name in ["next", "mine"] {
            assert_eq!(say(service, name, "hostname").await, name);
        }
    });
}

#[test]
fn a_server_that_dies_in_a_fill_or_claim_hands_nothing_out_twice() {
    let steps = [
        Operation::Insert,
        Operation::Connect,
        Operation::Exec,
        Operation::Pause,
        Operation::Update,
        Operation::Identify,
        Operation::Resume,
    ];
    for step in steps {
        for fault in [Fault::Hang, Fault::HangAfterwards] {
            let host = Host::with_golden();
            let first = host.serve();
            first.run(async {
                first.service.vms.create(named("golden-maker")).await.unwrap();
                first.service.pools.create(pool("py", 1, 2)).await.unwrap();
                if matches!(step, Operation::Identify | Operation::Resume | Operation::Update) {
                    filled(&first.service, "py", 1).await;
                }
            });
            for script in [host.hypervisor.script(), host.storage.script(), host.store.script()] {
                script.next(step, fault);
            }
            let mine = first.run_a_moment(take(&first.service, "mine"));
            drop(first);
            host.clear_faults();
            let second = host.serve();
            let service = &second.service;
            second.run(async {
                let what = format!("{step:?} {fault:?}");
                if let Some(Ok((mine, _))) = &mine {
                    assert_eq!(service.vms.get(&vm("mine")).unwrap().record.id, mine.record.id, "{what}");
                }
                // What the last server left half done has a place until it is gone; a VM that nobody was told of has one
                // until somebody deletes it.
                let told = matches!(mine, Some(Ok(_)));
                let taken = async {
                    loop {
                        match take(service, "next").await {
                            Err(ServiceError::PoolExhausted { .. }) if told => tokio::task::yield_now().await,
                            Err(ServiceError::PoolExhausted { .. }) => {
                                drop(service.vms.delete(&vm("mine"), false).await)
                            }
                            other => return other.unwrap(),
                        }
                    }
                };
                let taken = tokio::time::timeout(std::time::Duration::from_secs(10), taken).await;
                let (next, _) = taken.unwrap_or_else(|_| panic!("{what}: exhausted for ever"));
                assert_eq!(say(service, "next", "hostname").await, "next", "{what}");
                if let Some(Ok((mine, _))) = &mine {
                    assert_ne!(mine.record.id, next.record.id, "{what}");
                    assert_eq!(say(service, "mine", "hostname").await, "mine", "{what}");
                }
                let within = || everything(service).iter().filter(|vm| vm.record.pool.is_some()).count() <= 2;
                until("the pool is within its maximum", within).await;
            });
        }
    }
}

#[test]
fn the_record_of_a_pool_that_cannot_be_read_is_not_overwritten() {
    let host = Host::new();
    let odd = serde_json::json!({ "of": "a later version" });
    let server = host.serve();
    server.run(host.store.put_document(DocumentKind::Pool, "py", &odd)).unwrap();
    drop(server);
    let server = host.serve();
    server.run(async {
        assert_eq!(code(server.service.pools.create(pool("py", 1, 1)).await), "pool_unreadable");
        let stored = host.store.documents(DocumentKind::Pool).await.unwrap();
        assert_eq!(stored.documents, [("py".to_owned(), odd)]);
        server.service.pools.create(pool("other", 0, 1)).await.unwrap();
    });
}

#[test]
fn labels_and_metadata_of_a_pool_are_those_of_its_vms() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let request = PoolRequest {
            labels: pairs(&[("team", "red")]),
            metadata: pairs(&[("ticket", "1"), ("owner", "pool")]),
            ..pool("py", 1, 3)
        };
        service.pools.create(request).await.unwrap();
        filled(service, "py", 1).await;
        // One that waited, and one that is made for whoever asks.
        for name in ["waited", "made"] {
            let mut request =
                AcquireRequest { name: Some(name.parse().unwrap()), ..AcquireRequest::default() };
            request.vm.metadata = pairs(&[("owner", "me")]);
            let record = service.pools.acquire("py", request).await.unwrap().0.record;
            assert_eq!(record.labels["team"], "red", "{name}");
            assert_eq!((record.metadata["ticket"].as_str(), record.metadata["owner"].as_str()), ("1", "me"));
        }
    });
}
