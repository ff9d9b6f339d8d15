//! A database that does not know the VMs whose disks are there: nothing is removed, and it is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_driver_fake::{Fault, MemoryStore, Operation};
use microvm_types::{Life, Phase, VmRef};
use support::{Host, named, say, until};

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

#[test]
fn a_lost_database_costs_no_disk_of_an_earlier_version_and_brings_all_back_when_it_is_found() {
    let mut host = Host::new();
    let first = host.serve();
    let service = &first.service;
    let (id, asleep) = first.run(async {
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        say(service, "dev", "echo kept > /root/note").await;
        let asleep = service.vms.create(named("asleep")).await.unwrap().record.id;
        say(service, "asleep", "echo dream > /root/dream").await;
        service.vms.hibernate(&vm("asleep")).await.unwrap();
        (id, asleep)
    });
    drop(first);
    host.forget_records();
    let found_later = std::mem::take(&mut host.store);
    // Twice: what is left alone stays so.
    for _ in 0..2 {
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            assert!(service.vms.list(&microvm_core::VmFilter::default()).unwrap().is_empty());
            let strays: Vec<_> = service.host.strays().await.unwrap().into_iter().map(|vm| vm.id).collect();
            assert_eq!(strays, [id.clone(), asleep.clone()]);
            assert!(host.hypervisor.machines().contains_key(&id), "the machine of a VM was ended");
            // The service works, and its own VMs are no strays.
            service.vms.create(named("dev")).await.unwrap();
            assert_eq!(service.host.strays().await.unwrap().len(), 2);
            service.vms.delete(&vm("dev"), false).await.unwrap();
        });
    }
    host.store = found_later;
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        assert_eq!(service.host.strays().await.unwrap(), []);
        assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        assert_eq!(say(service, "asleep", "cat /root/dream").await, "dream");
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Running);
    });
}

#[test]
fn a_machine_whose_record_and_directory_are_gone_is_ended() {
    let mut host = Host::new();
    let first = host.serve();
    let service = &first.service;
    let (kept, lost) = first.run(async {
        let kept = service.vms.create(named("kept")).await.unwrap().record.id;
        (kept, service.vms.create(named("lost")).await.unwrap().record.id)
    });
    drop(first);
    host.store = MemoryStore::default();
    let directory = microvm_ports::VmStorage::vm_directory(&host.storage, &lost);
    std::fs::remove_dir_all(directory).unwrap();
    let _server = host.serve();
    assert_eq!(host.hypervisor.machines().into_keys().collect::<Vec<_>>(), [kept]);
}

#[test]
fn a_vm_that_the_last_server_could_not_mark_as_whole_is_no_leftover() {
    let mut host = Host::new();
    let first = host.serve();
    let id = first.run(first.service.vms.create(named("dev"))).unwrap().record.id;
    drop(first);
    // It died after the row was written and before the mark was removed.
    let directory = microvm_ports::VmStorage::vm_directory(&host.storage, &id);
    std::fs::write(directory.join("unfinished"), "").unwrap();
    let second = host.serve();
    second.run(async { assert_eq!(say(&second.service, "dev", "echo lives").await, "lives") });
    drop(second);
    host.store = MemoryStore::default();
    host.forget_records();
    let third = host.serve();
    let strays: Vec<_> =
        third.run(third.service.host.strays()).unwrap().into_iter().map(|vm| vm.id).collect();
    assert_eq!(strays, [id]);
}

#[test]
fn a_vm_whose_machine_cannot_be_ended_is_not_deleted() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        host.hypervisor.script().next(Operation::Sweep, Fault::Fail);
        service.vms.delete(&vm("dev"), false).await.unwrap_err();
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Failed);
        assert!(microvm_ports::VmStorage::vm_directory(&host.storage, &id).exists());
        service.vms.delete(&vm("dev"), false).await.unwrap();
        // Nor is a second machine started on its disk, or the disk put back under it.
        service.vms.create(named("dev")).await.unwrap();
        host.hypervisor.script().next(Operation::Sweep, Fault::Fail);
        service.vms.stop(&vm("dev"), true, None).await.unwrap_err();
        let record = service.vms.get(&vm("dev")).unwrap().record;
        assert_eq!(record.phase(), Phase::Failed);
        assert!(record.machine.is_some(), "nothing names the machine any more");
        let launched = host.hypervisor.script().calls(Operation::Launch);
        host.hypervisor.script().next(Operation::Sweep, Fault::Fail);
        service.vms.start(&vm("dev")).await.unwrap_err();
        assert_eq!(host.hypervisor.script().calls(Operation::Launch), launched, "a second one was started");
        service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(say(service, "dev", "echo lives").await, "lives");
        service.vms.delete(&vm("dev"), false).await.unwrap();
    });
    host.assert_empty("after two deletes");
}

#[test]
fn images_stay_while_it_is_not_known_who_needs_them() {
    let host = Host::new();
    let first = host.serve();
    let id = first.run(first.service.vms.create(named("dev"))).unwrap().record.id;
    drop(first);
    host.store.damage_vm(&id);
    let second = host.serve();
    let refused = second.run(second.service.catalog.collect_garbage());
    assert_eq!(support::code(refused), "image_users_unknown");
}

#[test]
fn what_an_interrupted_creation_left_is_removed() {
    let mut host = Host::new();
    for (step, fault) in [(Operation::Launch, Fault::Hang), (Operation::Connect, Fault::HangAfterwards)] {
        let first = host.serve();
        host.hypervisor.script().next(step, fault);
        assert!(first.run_a_moment(first.service.vms.create(named("dev"))).is_none());
        drop(first);
        host.clear_faults();
        // Not even its row was written.
        host.store = MemoryStore::default();
        let second = host.serve();
        assert_eq!(second.run(second.service.host.strays()).unwrap(), []);
        drop(second);
        host.assert_empty(&format!("after a crash at {step:?}"));
    }
}

/// Puts the row of a VM into the store, as an older copy of the database has it.
fn put_back(host: &Host, record: &microvm_types::vm::VmRecord) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(microvm_ports::StateStore::update_vm(&host.store, record)).unwrap();
}

#[test]
fn an_older_row_of_a_vm_of_an_earlier_version_removes_neither_its_disk_nor_what_it_sleeps_on() {
    let host = Host::new();
    let first = host.serve();
    let (awake, asleep, earlier) = first.run(async {
        let service = &first.service;
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo kept > /root/note").await;
        service.vms.create(named("asleep")).await.unwrap();
        say(service, "asleep", "echo dream > /root/dream").await;
        let earlier = service.vms.get(&vm("asleep")).unwrap().record;
        service.vms.hibernate(&vm("asleep")).await.unwrap();
        (service.vms.get(&vm("dev")).unwrap().record, service.vms.get(&vm("asleep")).unwrap().record, earlier)
    });
    drop(first);
    host.forget_records();
    // From before `dev` was reported, and before `asleep` fell asleep.
    let mut creating = awake.clone();
    (creating.life, creating.machine, creating.epoch) = (Life::stored(Phase::Creating, None, false), None, 0);
    put_back(&host, &creating);
    put_back(&host, &earlier);
    let second = host.serve();
    second.run(async {
        let service = &second.service;
        // VMs are taken up at the same time, while the server serves already.
        let record = |name| service.vms.get(&vm(name)).unwrap().record;
        until("both are looked at", || {
            ["dev", "asleep"].map(|name| record(name).phase()) == [Phase::Failed; 2]
        })
        .await;
        assert!(record("dev").failure.unwrap().contains("older than its disk"));
        assert!(host.hypervisor.machines().contains_key(&awake.id), "its machine was ended");
    });
    drop(second);
    host.forget_records();
    // Whoever starts it instead gets one machine on its disk, at the first attempt.
    let (again, other) = (Host::new(), "dev");
    let before = again.serve();
    let running = before.run(async {
        before.service.vms.create(named(other)).await.unwrap();
        say(&before.service, other, "echo kept > /root/note").await;
        before.service.vms.get(&vm(other)).unwrap().record
    });
    drop(before);
    again.forget_records();
    let mut unknown = running.clone();
    (unknown.life, unknown.machine, unknown.epoch) = (Life::stored(Phase::Creating, None, false), None, 0);
    put_back(&again, &unknown);
    let after = again.serve();
    after.run(async {
        let service = &after.service;
        until("it is looked at", || service.vms.get(&vm(other)).unwrap().record.phase() == Phase::Failed)
            .await;
        service.vms.start(&vm(other)).await.unwrap();
        assert_eq!(say(service, other, "cat /root/note").await, "kept");
        assert_eq!(again.hypervisor.machines().len(), 1);
    });
    drop(after);
    // The copy that knows them brings both back.
    put_back(&host, &awake);
    put_back(&host, &asleep);
    let third = host.serve();
    third.run(async {
        assert_eq!(say(&third.service, "dev", "cat /root/note").await, "kept");
        assert_eq!(say(&third.service, "asleep", "cat /root/dream").await, "dream");
    });
}
