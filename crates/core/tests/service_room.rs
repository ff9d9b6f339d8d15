//! A full disk of the host: VMs stand still with the reason, and go on by themselves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_driver_fake::{Fault, Operation};
use microvm_types::vm::Rest;
use microvm_types::{ErrorKind, OperationName, Phase, VmRef};
use support::{Host, named, say, until};

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

#[test]
fn a_vm_whose_write_finds_no_space_waits_for_room_and_goes_on() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    let id = server.run(async {
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        say(service, "dev", "echo kept > /root/note").await;
        host.storage.set_free(0);
        // Nor can it be stored that it stands still: it does all the same.
        host.store.script().next(Operation::Update, Fault::Fail);
        assert!(host.hypervisor.fill_disk(&id));
        until("it stands still", || service.vms.get(&vm("dev")).unwrap().record.phase() == Phase::Paused)
            .await;
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.life.rest(), Some(&Rest::DiskFull));
        let error = service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("disk"), "{error}");
        id
    });
    drop(server);
    // A server that is started meanwhile finds it so, whatever its row says.
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        until("it is known", || {
            service.vms.get(&vm("dev")).unwrap().record.life.rest() == Some(&Rest::DiskFull)
        })
        .await;
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Paused);
        assert!(host.hypervisor.machines().contains_key(&id));
        host.storage.set_free(1 << 40);
        until("it goes on", || service.vms.get(&vm("dev")).unwrap().record.phase() == Phase::Running).await;
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.life.rest(), None);
        assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
    });
}

#[test]
fn a_limit_for_all_holds_without_a_reserve_too() {
    let host = Host { reserve: 0, ..Host::new() };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let id = service.vms.create(named("grows")).await.unwrap().record.id;
        let disk = microvm_ports::VmStorage::vm_files(&host.storage, &id).await.unwrap().scratch.path;
        host.storage.set_free(0);
        let mut length = 0;
        until("it stands still", || {
            length += 64 << 10;
            std::fs::File::options().write(true).open(&disk).unwrap().set_len(length).unwrap();
            service.vms.get(&vm("grows")).unwrap().record.life.rest() == Some(&Rest::DiskFull)
        })
        .await;
    });
}

#[test]
fn a_vm_that_grows_stands_still_before_the_others_have_no_room() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("quiet")).await.unwrap();
        let id = service.vms.create(named("grows")).await.unwrap().record.id;
        let disk = microvm_ports::VmStorage::vm_files(&host.storage, &id).await.unwrap().scratch.path;
        host.storage.set_free(1 << 20);
        let mut length = 0;
        until("the one that grows stands still", || {
            length += 64 << 10;
            std::fs::File::options().write(true).open(&disk).unwrap().set_len(length).unwrap();
            service.vms.get(&vm("grows")).unwrap().record.life.rest() == Some(&Rest::DiskFull)
        })
        .await;
        assert_eq!(service.vms.get(&vm("quiet")).unwrap().record.phase(), Phase::Running);
        assert_eq!(say(service, "quiet", "echo here").await, "here");
        // Whoever pauses it by hand wants it to stay so.
        service.vms.pause(&vm("grows")).await.unwrap();
        host.storage.set_free(1 << 40);
        assert_eq!(service.vms.get(&vm("grows")).unwrap().record.life.rest(), None);
        service.vms.resume(&vm("grows")).await.unwrap();
        assert_eq!(say(service, "grows", "echo on").await, "on");
    });
}
