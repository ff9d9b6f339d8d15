//! Requests that come while a VM wakes, goes to disk, or goes back to a snapshot: they wait, and are carried out then.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::time::Duration;

use branches::{forks, snap, vm};
use microvm_core::{ServiceError, Services, SnapshotRequest};
use microvm_driver_fake::{Fault, Operation};
use microvm_types::{OperationName, Phase};
use support::{Host, Server, code, named, say, until};

/// Verbs that need the VM to run, or wake it. The last two wait in the queue of its actor in any case.
#[derive(Debug, Clone, Copy)]
enum Verb {
    Fork,
    Snapshot,
    BeginSnapshot,
    Guest,
    Pause,
    Start,
}

const VERBS: [Verb; 6] =
    [Verb::Fork, Verb::Snapshot, Verb::BeginSnapshot, Verb::Guest, Verb::Pause, Verb::Start];

async fn ask(service: &Services, verb: Verb) -> Result<(), ServiceError> {
    match verb {
        Verb::Fork => service.branches.fork(&vm("dev"), forks(1, "child")).await.map(drop),
        Verb::Snapshot => snap(service, "dev", "second").await.map(drop),
        Verb::BeginSnapshot => {
            service.branches.begin_snapshot(&vm("dev"), SnapshotRequest::default()).await.map(drop)
        }
        Verb::Guest => service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await.map(drop),
        Verb::Pause => service.vms.pause(&vm("dev")).await.map(drop),
        Verb::Start => service.vms.start(&vm("dev")).await.map(drop),
    }
}

fn phase(service: &Services) -> Phase {
    service.vms.get(&vm("dev")).unwrap().record.phase()
}

/// Longest time for a channel that is opened again: shorter than whatever is waited for here.
const CHANNEL: Duration = Duration::from_millis(25);

fn host() -> Host {
    let mut host = Host::new();
    host.adopt_deadline = CHANNEL;
    host
}

/// A server with the VM `dev`, which has a note and a snapshot called `first`.
fn served(host: &Host) -> Server {
    let server = host.serve();
    server.run(async {
        server.service.vms.create(named("dev")).await.unwrap();
        say(&server.service, "dev", "echo kept > /root/note").await;
        snap(&server.service, "dev", "first").await.unwrap();
    });
    server
}

/// Begins `work`, waits until the VM is seen in `held`, where `operation` holds it, asks for `verb`, and lets all go on.
async fn ask_while(
    host: &Host,
    service: &Services,
    (operation, held): (Operation, Phase),
    work: impl Future<Output = Result<(), ServiceError>> + Send + 'static,
    verb: Verb,
) -> Result<(), ServiceError> {
    host.hypervisor.script().next(operation, Fault::Hold);
    host.storage.script().next(operation, Fault::Hold);
    let first = tokio::spawn(work);
    until("the phase", || phase(service) == held).await;
    let mut second = std::pin::pin!(ask(service, verb));
    waits(&mut second, &format!("{verb:?} while {held}")).await;
    host.hypervisor.script().release();
    host.storage.script().release();
    first.await.unwrap().unwrap();
    second.await
}

/// Checks that a request waits, also for longer than a channel may take that is opened again.
async fn waits(asked: &mut (impl Future<Output = Result<(), ServiceError>> + Unpin), what: &str) {
    let early = tokio::time::timeout(4 * CHANNEL, asked).await;
    assert!(early.is_err(), "{what}: {early:?}");
}

#[test]
fn whoever_comes_while_the_memory_of_a_vm_is_written_waits_for_that() {
    for verb in [Verb::Fork, Verb::Snapshot, Verb::BeginSnapshot, Verb::Guest] {
        let host = host();
        let server = served(&host);
        let service = &server.service;
        server.run(async {
            let written = || host.storage.script().calls(Operation::WriteSnapshot);
            let before = written();
            host.storage.script().next(Operation::WriteSnapshot, Fault::Hold);
            let first = service.clone();
            let sleep = tokio::spawn(async move { first.vms.hibernate(&vm("dev")).await.map(drop) });
            until("it is written", || written() > before).await;
            assert_eq!(phase(service), Phase::Running);
            let mut asked = std::pin::pin!(ask(service, verb));
            waits(&mut asked, &format!("{verb:?}")).await;
            host.storage.script().release();
            sleep.await.unwrap().unwrap();
            asked.await.unwrap_or_else(|error| panic!("{verb:?}: {error}"));
            assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        });
    }
}

#[test]
fn whoever_comes_while_another_one_wakes_a_vm_waits_for_that() {
    for verb in VERBS {
        let host = host();
        let server = served(&host);
        let service = &server.service;
        server.run(async {
            service.vms.hibernate(&vm("dev")).await.unwrap();
            let first = service.clone();
            let wake = async move { first.branches.fork(&vm("dev"), forks(1, "first")).await.map(drop) };
            let asked = ask_while(&host, service, (Operation::Incoming, Phase::Starting), wake, verb).await;
            asked.unwrap_or_else(|error| panic!("{verb:?}: {error}"));
            assert_eq!(say(service, "first", "cat /root/note").await, "kept");
        });
    }
}

#[test]
fn whoever_comes_while_a_vm_goes_to_disk_has_it_woken() {
    for verb in [Verb::Fork, Verb::Snapshot, Verb::BeginSnapshot, Verb::Guest, Verb::Start] {
        let host = host();
        let server = served(&host);
        let service = &server.service;
        server.run(async {
            let first = service.clone();
            let sleep = async move { first.vms.hibernate(&vm("dev")).await.map(drop) };
            let asked = ask_while(&host, service, (Operation::Kill, Phase::Stopping), sleep, verb).await;
            asked.unwrap_or_else(|error| panic!("{verb:?}: {error}"));
            assert_eq!(
                (phase(service), say(service, "dev", "cat /root/note").await),
                (Phase::Running, "kept".into())
            );
        });
    }
}

#[test]
fn whoever_comes_while_a_vm_goes_back_to_a_snapshot_finds_it_there() {
    for verb in VERBS {
        let host = host();
        let server = served(&host);
        let service = &server.service;
        server.run(async {
            say(service, "dev", "echo later > /root/note").await;
            let first = service.clone();
            let back = async move { first.branches.rollback(&vm("dev"), "first").await.map(drop) };
            let asked = ask_while(&host, service, (Operation::ResetFiles, Phase::Stopped), back, verb).await;
            asked.unwrap_or_else(|error| panic!("{verb:?}: {error}"));
            service.vms.resume(&vm("dev")).await.unwrap();
            assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        });
    }
}

#[test]
fn what_does_not_come_back_is_refused_and_not_waited_for() {
    let host = Host::new();
    let server = served(&host);
    let service = &server.service;
    server.run(async {
        host.storage.script().next(Operation::ResetFiles, Fault::Fail);
        service.branches.rollback(&vm("dev"), "first").await.unwrap_err();
        for verb in [Verb::Fork, Verb::Snapshot, Verb::Guest] {
            assert_eq!(
                (phase(service), code(ask(service, verb).await)),
                (Phase::Stopped, "vm_not_running"),
                "{verb:?}"
            );
        }
        // Nor is one that is stopped meanwhile, or deleted.
        service.vms.start(&vm("dev")).await.unwrap();
        service.vms.hibernate(&vm("dev")).await.unwrap();
        host.hypervisor.script().next(Operation::Incoming, Fault::Hang);
        let first = service.clone();
        let woken = tokio::spawn(async move { first.vms.start(&vm("dev")).await });
        until("it wakes", || phase(service) == Phase::Starting).await;
        let dev = vm("dev");
        let (deleted, asked) = futures::join!(service.vms.delete(&dev, false), ask(service, Verb::Fork));
        deleted.unwrap();
        assert_eq!(code(woken.await.unwrap()), "overtaken");
        let asked = code(asked);
        assert!(["vm_not_found", "vm_not_running"].contains(&asked), "{asked}");
    });
}
