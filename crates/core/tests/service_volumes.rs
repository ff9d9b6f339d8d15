//! Named volumes: who may use one, what keeps it, and when it goes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, restored, snap, vm};
use microvm_core::{CreateRequest, PoolRequest, ServiceError, Services};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::hypervisor::MachineExit;
use microvm_types::template::Overrides;
use microvm_types::volume::VolumeMount;
use microvm_types::{Caller, Phase};
use support::{Host, code, named, until};

fn mount(volume: &str, read_only: bool) -> VolumeMount {
    VolumeMount { name: volume.parse().unwrap(), target: format!("/{volume}"), read_only }
}

/// A request for a VM with volumes; `-` before a name: read-only.
fn with(name: &str, volumes: &[&str]) -> CreateRequest {
    let volumes = volumes.iter().map(|volume| match volume.strip_prefix('-') {
        Some(volume) => mount(volume, true),
        None => mount(volume, false),
    });
    let overrides = Overrides { volumes: volumes.collect(), ..Overrides::default() };
    CreateRequest { overrides, ..named(name) }
}

async fn names(service: &Services) -> Vec<String> {
    service.volumes.list().await.unwrap().iter().map(|view| view.record.name.to_string()).collect()
}

async fn users(service: &Services, volume: &str) -> Vec<String> {
    service.volumes.get(volume).await.unwrap().vms.iter().map(ToString::to_string).collect()
}

#[test]
fn a_volume_is_made_at_its_first_use_and_stays_when_its_vm_goes() {
    let host = Host::with_golden();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let record = service.vms.create(with("one", &["data"])).await.unwrap().record;
        assert_eq!(
            (names(service).await, users(service, "data").await),
            (vec!["data".into()], vec!["one".into()])
        );
        let machine = host.hypervisor.machines().remove(&record.id).unwrap();
        let disk = machine.attached.iter().find(|disk| disk.serial == "volume0").unwrap();
        let id = service.volumes.get("data").await.unwrap().record.id;
        assert!(disk.path.as_str().contains(id.as_str()) && !disk.read_only, "{disk:?}");
        assert_eq!(support::say(service, "one", "echo here > /data/file; cat /data/file").await, "here");
        assert_eq!(code(service.volumes.remove("data").await), "volume_has_vms");
        service.vms.stop(&vm("one"), true, None).await.unwrap();
        assert_eq!(code(service.volumes.remove("data").await), "volume_has_vms", "a stopped VM starts again");
        service.vms.delete(&vm("one"), false).await.unwrap();
        assert_eq!(users(service, "data").await, Vec::<String>::new());
    });
    drop(server);
    // It is known by its directory alone.
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        assert_eq!(names(service).await, ["data"]);
        service.vms.create(with("two", &["data"])).await.unwrap();
        service.vms.delete(&vm("two"), false).await.unwrap();
        service.volumes.create(&"other".parse().unwrap(), Some(64)).await.unwrap();
        assert_eq!(code(service.volumes.create(&"other".parse().unwrap(), None).await), "volume_name_taken");
        assert_eq!(code(service.volumes.create(&"tiny".parse().unwrap(), Some(1)).await), "invalid_field");
        assert_eq!(code(service.volumes.get("none").await), "volume_not_found");
        service.vms.create(with("three", &["other"])).await.unwrap();
        let gone = service.volumes.prune().await.unwrap();
        assert_eq!(gone.iter().map(|view| view.record.name.as_str()).collect::<Vec<_>>(), ["data"]);
        service.vms.delete(&vm("three"), false).await.unwrap();
        service.volumes.remove("other").await.unwrap();
        assert_eq!(names(service).await, Vec::<String>::new());
    });
}

#[test]
fn one_vm_writes_or_several_read() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(with("one", &["data"])).await.unwrap();
        for volume in ["data", "-data"] {
            let refused = service.vms.create(with("two", &[volume])).await.unwrap_err();
            assert!(
                matches!(&refused, ServiceError::VolumeInUse { vm, .. } if vm.as_str() == "one"),
                "{refused}"
            );
            assert_eq!(code(service.vms.get(&vm("two"))), "vm_not_found", "nothing is left of it");
        }
        // Memory that lies on disk has the file system open, too.
        service.vms.hibernate(&vm("one")).await.unwrap();
        assert_eq!(code(service.vms.create(with("two", &["data"])).await), "volume_in_use");
        service.vms.start(&vm("one")).await.unwrap();
        service.vms.stop(&vm("one"), true, None).await.unwrap();
        service.vms.create(with("two", &["data"])).await.unwrap();
        assert_eq!(code(service.vms.start(&vm("one")).await), "volume_in_use");
        assert_eq!(service.vms.get(&vm("one")).unwrap().record.phase(), Phase::Stopped);
        // One whose machine dies leaves it to others.
        let id = service.vms.get(&vm("two")).unwrap().record.id;
        assert!(host.hypervisor.end(&id, MachineExit::GuestPanic));
        until("it has failed", || service.vms.get(&vm("two")).unwrap().record.phase() == Phase::Failed).await;
        service.vms.start(&vm("one")).await.unwrap();
        assert_eq!(code(service.vms.start(&vm("two")).await), "volume_in_use");
        service.vms.delete(&vm("one"), false).await.unwrap();
        // A machine that does not come up holds nothing.
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        service.vms.create(with("three", &["data"])).await.unwrap_err();
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        service.vms.start(&vm("two")).await.unwrap_err();
        host.store.script().next(Operation::Update, Fault::Fail);
        service.vms.start(&vm("two")).await.unwrap_err();
        host.clear_faults();
        for name in ["reads-1", "reads-2"] {
            service.vms.create(with(name, &["-data"])).await.unwrap();
        }
        let refused = service.vms.start(&vm("two")).await.unwrap_err();
        assert!(refused.to_string().contains("reads it"), "{refused}");
        let twice = service.vms.create(with("twice", &["data", "-data"])).await.unwrap_err();
        assert!(twice.to_string().contains("named twice"), "{twice}");
        let mut same_place = with("same", &["a", "b"]);
        same_place.overrides.volumes[1].target = "/a/b".to_owned();
        assert!(service.vms.create(same_place).await.unwrap_err().to_string().contains("separate paths"));
    });
    drop(server);
    // The next server knows who uses it before anybody can ask.
    let server = host.serve();
    server.run(async {
        assert_eq!(code(server.service.vms.create(with("more", &["data"])).await), "volume_in_use");
    });
}

#[test]
fn forks_and_restored_vms_have_copies_of_their_own() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(with("one", &["data"])).await.unwrap();
        service.branches.fork(&vm("one"), forks(2, "child-{n}")).await.unwrap();
        snap(service, "one", "good").await.unwrap();
        service.branches.restore("good", restored("again")).await.unwrap();
        assert_eq!(users(service, "data").await, ["one"]);
        service.vms.delete(&vm("one"), false).await.unwrap();
        // What they have does not keep the volume from anybody.
        service.vms.create(with("two", &["data"])).await.unwrap();
        service.vms.stop(&vm("child-1"), true, None).await.unwrap();
        service.vms.start(&vm("child-1")).await.unwrap();
        service.vms.delete(&vm("two"), false).await.unwrap();
        service.volumes.remove("data").await.unwrap();
        service.vms.stop(&vm("again"), true, None).await.unwrap();
        service.vms.start(&vm("again")).await.unwrap();
        // Those that only read do read the volume itself.
        service.vms.create(with("reads", &["-data"])).await.unwrap();
        service.branches.fork(&vm("reads"), forks(1, "reads-too")).await.unwrap();
        service.vms.delete(&vm("reads"), false).await.unwrap();
        assert_eq!(code(service.vms.create(with("writes", &["data"])).await), "volume_in_use");
    });
}

#[test]
fn what_a_vm_wrote_while_it_had_branches_is_in_the_volume_before_the_next_one_has_it() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let record = service.vms.create(with("one", &["data"])).await.unwrap().record;
        service.branches.fork(&vm("one"), forks(1, "child")).await.unwrap();
        assert!(host.hypervisor.end(&record.id, MachineExit::GuestPanic));
        until("it has failed", || service.vms.get(&vm("one")).unwrap().record.phase() == Phase::Failed).await;
        let written = || host.storage.script().calls(Operation::WriteBack);
        let before = written();
        host.storage.script().next(Operation::WriteBack, Fault::Fail);
        service.vms.create(with("two", &["data"])).await.unwrap_err();
        service.vms.create(with("two", &["data"])).await.unwrap();
        // Once more for the VM that was not made.
        assert_eq!(written(), before + 3);
        service.vms.delete(&vm("two"), false).await.unwrap();
        service.vms.create(with("three", &["data"])).await.unwrap();
        assert_eq!(written(), before + 4, "its own end, and nothing more of the first");
    });
}

#[test]
fn two_at_once_make_one_volume_and_tenants_have_names_of_their_own() {
    let host = Host::new();
    let server = host.serve();
    let blue = Caller { tenant: "blue".to_owned(), ..Caller::local("of blue") };
    let blue = server.engine.as_caller(&blue, "test");
    server.run(async {
        let service = &server.service;
        let (one, two) = tokio::join!(
            service.vms.create(with("one", &["data"])),
            service.vms.create(with("two", &["data"]))
        );
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        assert_eq!(code(one.and(two)), "volume_in_use");
        assert_eq!(names(service).await, ["data"]);
        blue.vms.create(with("one", &["data"])).await.unwrap();
        assert_eq!(names(&blue).await, ["data"]);
        assert_ne!(
            blue.volumes.get("data").await.unwrap().record.id,
            service.volumes.get("data").await.unwrap().record.id
        );
        let id = service.volumes.get("data").await.unwrap().record.id;
        assert_eq!(code(blue.volumes.get(id.as_str()).await), "volume_not_found");
        host.storage.script().next(Operation::CreateVolume, Fault::Fail);
        service.volumes.create(&"broken".parse().unwrap(), None).await.unwrap_err();
        assert_eq!(names(service).await, ["data"]);
        let pool = PoolRequest {
            name: "pool".parse().unwrap(),
            template: None,
            overrides: with("x", &["data"]).overrides,
            min: 1,
            max: 2,
            max_age_seconds: None,
            labels: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
        };
        assert_eq!(code(service.pools.create(pool).await), "invalid_field");
    });
}

#[test]
fn a_vm_that_goes_writes_its_volumes_first() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let ended = || host.hypervisor.script().calls(Operation::Shutdown);
        service.vms.create(named("plain")).await.unwrap();
        service.vms.create(with("reads", &["-data"])).await.unwrap();
        for name in ["plain", "reads"] {
            service.vms.delete(&vm(name), false).await.unwrap();
        }
        assert_eq!(ended(), 0, "it has nothing to write");
        for (number, rest) in ["runs", "paused", "hibernated"].into_iter().enumerate() {
            service.vms.create(with("dev", &["data"])).await.unwrap();
            match rest {
                "paused" => drop(service.vms.pause(&vm("dev")).await.unwrap()),
                "hibernated" => drop(service.vms.hibernate(&vm("dev")).await.unwrap()),
                _ => {}
            }
            service.vms.delete(&vm("dev"), false).await.unwrap();
            assert_eq!(ended(), number as u64 + 1, "{rest}");
        }
        // One that cannot be woken goes all the same.
        service.vms.create(with("dev", &["data"])).await.unwrap();
        service.vms.hibernate(&vm("dev")).await.unwrap();
        host.hypervisor.upgrade("2.0");
        service.vms.delete(&vm("dev"), false).await.unwrap();
        assert_eq!(ended(), 3);
    });
}

#[test]
fn a_volume_of_a_vm_that_cannot_be_read_is_neither_removed_nor_written() {
    let host = Host::new();
    let server = host.serve();
    let bad = server.run(async {
        let service = &server.service;
        let bad = service.vms.create(with("bad", &["data"])).await.unwrap().record.id;
        service.vms.stop(&vm("bad"), true, None).await.unwrap();
        service.vms.create(with("sleeps", &["data"])).await.unwrap();
        service.vms.hibernate(&vm("sleeps")).await.unwrap();
        service.volumes.create(&"free".parse().unwrap(), None).await.unwrap();
        bad
    });
    drop(server);
    host.store.damage_vm(&bad);
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        assert_eq!(code(service.vms.start(&vm("sleeps")).await), "volume_users_unknown");
        // It has memory on disk, whatever was refused.
        assert_eq!(code(service.vms.create(with("reads", &["-data"])).await), "volume_in_use");
        service.vms.delete(&vm("sleeps"), false).await.unwrap();
        assert_eq!(code(service.vms.create(with("writes", &["data"])).await), "volume_users_unknown");
        assert_eq!(code(service.volumes.remove("data").await), "volume_users_unknown");
        assert_eq!(code(service.volumes.prune().await), "volume_users_unknown");
        // What it surely does not have is as ever.
        service.vms.create(with("other", &["free"])).await.unwrap();
        service.vms.delete(&vm("other"), false).await.unwrap();
        assert!(names(service).await.contains(&"data".to_owned()));
    });
}

#[test]
fn of_two_volumes_with_one_name_neither_is_used_by_name_or_pruned() {
    let host = Host::new();
    let server = host.serve();
    let mut record =
        server.run(server.service.volumes.create(&"data".parse().unwrap(), None)).unwrap().record;
    let first = record.id.clone();
    drop(server);
    record.id = microvm_types::VolumeId::from_parts(1, 1);
    let second = record.id.clone();
    let server = host.serve();
    server.run(microvm_ports::VolumeStore::create_volume(&host.storage, &record)).unwrap();
    drop(server);
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let refused = service.vms.create(with("one", &["data"])).await.unwrap_err();
        let said = refused.to_string();
        assert!(said.contains(first.as_str()) && said.contains(second.as_str()), "{said}");
        assert_eq!(code(service.volumes.remove("data").await), "volume_unclear");
        assert_eq!(code(service.volumes.create(&"data".parse().unwrap(), None).await), "volume_unclear");
        assert_eq!(service.volumes.unreadable().unwrap().len(), 2);
        assert!(service.volumes.prune().await.unwrap().is_empty());
        service.volumes.remove(second.as_str()).await.unwrap();
        service.vms.create(with("one", &["data"])).await.unwrap();
        assert_eq!(service.volumes.get("data").await.unwrap().record.id, first);
        assert!(service.volumes.unreadable().unwrap().is_empty());
    });
}

#[test]
fn no_volume_is_made_by_use_while_one_cannot_be_read() {
    let host = Host::new();
    let server = host.serve();
    let disk = server.run(async {
        let record = server.service.volumes.create(&"data".parse().unwrap(), None).await.unwrap().record;
        microvm_ports::VolumeStore::volume_disk(&host.storage, &record.id)
    });
    drop(server);
    std::fs::write(disk.with_file_name("volume.json"), "nothing").unwrap();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        assert_eq!(code(service.vms.create(with("one", &["data"])).await), "volume_unclear");
        service.volumes.create(&"data".parse().unwrap(), None).await.unwrap();
        service.vms.create(with("one", &["data"])).await.unwrap();
    });
}

#[test]
fn a_vm_that_goes_or_cannot_be_ended_keeps_its_volumes() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(with("lives", &["other"])).await.unwrap();
        host.hypervisor.script().next(Operation::Sweep, Fault::Fail);
        service.vms.stop(&vm("lives"), true, None).await.unwrap_err();
        assert!(service.vms.get(&vm("lives")).unwrap().record.machine.is_some());
        assert_eq!(code(service.vms.create(with("two", &["other"])).await), "volume_in_use");
        service.vms.stop(&vm("lives"), true, None).await.unwrap();
        service.vms.create(with("two", &["other"])).await.unwrap();

        let record = service.vms.create(with("one", &["data"])).await.unwrap().record;
        service.branches.fork(&vm("one"), forks(1, "child")).await.unwrap();
        assert!(host.hypervisor.end(&record.id, MachineExit::GuestPanic));
        until("it has failed", || service.vms.get(&vm("one")).unwrap().record.phase() == Phase::Failed).await;
        host.storage.script().next(Operation::WriteBack, Fault::Hang);
        let one = vm("one");
        let deletion = service.vms.delete(&one, false);
        let look = async {
            until("it goes", || service.vms.get(&one).unwrap().record.phase() == Phase::Deleting).await;
            code(service.vms.create(with("next", &["data"])).await)
        };
        tokio::select! {
            ended = deletion => panic!("it should hang: {ended:?}"),
            refused = look => assert_eq!(refused, "volume_in_use"),
        }
    });
}

#[test]
fn a_volume_of_a_pool_is_not_removed() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.volumes.create(&"data".parse().unwrap(), None).await.unwrap();
        let pool = PoolRequest {
            name: "pool".parse().unwrap(),
            template: None,
            overrides: with("x", &["-data"]).overrides,
            min: 0,
            max: 1,
            max_age_seconds: None,
            labels: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
        };
        service.pools.create(pool).await.unwrap();
        let refused = service.volumes.remove("data").await.unwrap_err().to_string();
        assert!(refused.contains("the pool `pool`"), "{refused}");
        assert!(service.volumes.prune().await.unwrap().is_empty());
        service.pools.remove("pool").await.unwrap();
        service.volumes.remove("data").await.unwrap();
    });
}
