//! Idle limits on fakes: VMs that nobody uses end, and detached work counts as use.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::time::Duration;

use branches::vm;
use microvm_core::VmChange;
use microvm_driver_fake::{Fault, Operation};
use microvm_types::exec::ExecRequest;
use microvm_types::vm::{Limits, Rest};
use microvm_types::{OperationName, Phase};
use support::{Host, Server, changed, code, named, until};

#[test]
fn limits_end_ephemeral_vms() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let mut events = server.service.vms.events().unwrap();
        let mut request = named("dev");
        request.vm.limits = Limits { idle_seconds: Some(1), ephemeral: true, ..Limits::default() };
        server.service.vms.create(request).await.unwrap();
        let guest = server.service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await.unwrap();
        host.clock.advance(60_000);
        let early = tokio::time::timeout(Duration::from_millis(1_300), async {
            while changed(&mut events).await.1 != Phase::Deleted {}
        });
        assert!(early.await.is_err(), "it must not go while somebody uses it");
        drop(guest);
        host.clock.advance(60_000);
        while changed(&mut events).await.1 != Phase::Deleted {}
    });
    host.assert_empty("after the idle limit");
}

/// Starts a process that lives on by itself, and then lets nobody use the VM.
async fn detach(server: &Server, name: &str) {
    let guest = server.service.vms.guest(&vm(name), OperationName::GUEST_EXEC).await.unwrap();
    let request = ExecRequest {
        command: vec!["sleep".into(), "1000000".into()],
        detach: true,
        ..ExecRequest::default()
    };
    drop(guest.exec(&request).await.unwrap());
}

#[test]
fn detached_work_that_cannot_be_asked_for_is_not_ended_by_the_idle_limit() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let mut request = named("dev");
        request.vm.limits = Limits { idle_seconds: Some(1), ephemeral: true, ..Limits::default() };
        server.service.vms.create(request).await.unwrap();
        detach(&server, "dev").await;
        let asked = || host.hypervisor.script().calls(Operation::Processes);
        let before = asked();
        host.hypervisor.script().next(Operation::Processes, Fault::Fail);
        host.clock.advance(60_000);
        until("it is asked for its processes", || asked() > before).await;
        // Its actor does one thing after the other: it answers when it has decided.
        let decided = server.service.vms.resume(&vm("dev")).await.unwrap();
        assert_eq!(decided.record.phase(), Phase::Running);
        server.service.vms.delete(&vm("dev"), false).await.unwrap();
    });
}

#[test]
fn detached_work_that_stands_still_or_sleeps_is_not_ended_by_the_idle_limit() {
    for (pause_seconds, hibernate_seconds, rested) in
        [(Some(1), None, Phase::Paused), (None, Some(1), Phase::Hibernated)]
    {
        for works in [true, false] {
            let host = Host::new();
            let server = host.serve();
            server.run(async {
                let mut request = named("dev");
                request.vm.limits = Limits {
                    idle_seconds: Some(3),
                    pause_seconds,
                    hibernate_seconds,
                    ephemeral: true,
                    ..Limits::default()
                };
                server.service.vms.create(request).await.unwrap();
                if works {
                    detach(&server, "dev").await;
                }
                let phase = || server.service.vms.get(&vm("dev")).ok().map(|vm| vm.record.phase());
                // Long enough for the first limit, too short for the other one.
                host.clock.advance(1_500);
                until("it rests", || phase() == Some(rested)).await;
                let asked = || host.hypervisor.script().calls(Operation::Processes);
                let before = asked();
                host.clock.advance(10_000);
                until("it is woken to be asked", || asked() > before).await;
                let end = works.then_some(rested);
                // Asking counts as use, at a moment that nothing tells of: time goes on until it is over.
                until("it rests again, or is gone", || {
                    host.clock.advance(10);
                    phase() == end
                })
                .await;
                if works {
                    server.service.vms.delete(&vm("dev"), false).await.unwrap();
                }
            });
        }
    }
}

#[test]
fn what_is_paused_by_hand_stays_so_while_its_idle_limit_asks_for_work() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let mut request = named("dev");
        request.vm.limits = Limits { idle_seconds: Some(3), ..Limits::default() };
        service.vms.create(request).await.unwrap();
        service.vms.pause(&vm("dev")).await.unwrap();
        let asked = || host.hypervisor.script().calls(Operation::Processes);
        let before = asked();
        // It is being asked from here on.
        host.hypervisor.script().next(Operation::Processes, Fault::Hang);
        host.clock.advance(10_000);
        until("it is asked", || asked() > before).await;
        let guest = service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await;
        assert_eq!(code(guest), "vm_not_running");
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Paused);
    });
}

#[test]
fn what_cannot_be_paused_again_after_it_was_asked_for_work_is_shown_as_running() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let mut request = named("dev");
        request.vm.limits = Limits { idle_seconds: Some(3), ..Limits::default() };
        service.vms.create(request).await.unwrap();
        detach(&server, "dev").await;
        let phase = || service.vms.get(&vm("dev")).unwrap().record.phase();
        let asked = || host.hypervisor.script().calls(Operation::Processes);
        let mut events = service.vms.events().unwrap();
        for failures in [1, 2] {
            service.vms.pause(&vm("dev")).await.unwrap();
            while changed(&mut events).await.1 != Phase::Paused {}
            let before = asked();
            for _ in 0..failures {
                host.hypervisor.script().next(Operation::Pause, Fault::Fail);
            }
            until("it is asked", || {
                host.clock.advance(10_000);
                asked() > before
            })
            .await;
            // Its actor does one thing after the other: what it does next is done after the question.
            service.vms.change(&vm("dev"), VmChange::default()).await.unwrap();
            let expected = if failures == 1 { Phase::Paused } else { Phase::Running };
            assert_eq!(phase(), expected, "{failures} failures");
        }
        while changed(&mut events).await.1 != Phase::Running {}
        assert_eq!(support::say(service, "dev", "echo runs").await, "runs");
    });
}

#[test]
fn what_is_paused_by_hand_is_not_woken_by_who_came_while_it_rested() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let mut request = named("dev");
        request.vm.limits = Limits { pause_seconds: Some(1), ..Limits::default() };
        service.vms.create(request).await.unwrap();
        let record = || service.vms.get(&vm("dev")).unwrap().record;
        for _ in 0..20 {
            until("it rests", || {
                host.clock.advance(1_500);
                record().life.rest() == Some(&Rest::Paused)
            })
            .await;
            let dev = vm("dev");
            let (paused, _) =
                futures::join!(service.vms.pause(&dev), service.vms.guest(&dev, OperationName::GUEST_EXEC));
            paused.unwrap();
            assert_eq!((record().phase(), record().life.rest()), (Phase::Paused, None));
            service.vms.resume(&dev).await.unwrap();
        }
    });
}

#[test]
fn what_sleeps_and_cannot_be_woken_to_be_asked_is_not_deleted() {
    let host = Host::new();
    let first = host.serve();
    let phase = |server: &Server| server.service.vms.get(&vm("dev")).ok().map(|vm| vm.record.phase());
    first.run(async {
        let mut request = named("dev");
        request.vm.limits = Limits {
            idle_seconds: Some(3),
            hibernate_seconds: Some(1),
            ephemeral: true,
            ..Limits::default()
        };
        first.service.vms.create(request).await.unwrap();
        detach(&first, "dev").await;
        host.clock.advance(1_500);
        until("it sleeps", || phase(&first) == Some(Phase::Hibernated)).await;
        host.hypervisor.script().next(Operation::Incoming, Fault::Fail);
        host.clock.advance(10_000);
        until("its wake has failed", || phase(&first) == Some(Phase::Failed)).await;
    });
    // A server that looks again at once; this one rests for half a minute first.
    drop(first);
    let second = host.serve();
    second.run(async {
        let asked = host.hypervisor.script().calls(Operation::Processes);
        host.clock.advance(10_000);
        until("it is woken to be asked", || host.hypervisor.script().calls(Operation::Processes) > asked)
            .await;
        until("it lives", || matches!(phase(&second), Some(Phase::Running | Phase::Hibernated))).await;
        second.service.vms.delete(&vm("dev"), false).await.unwrap();
    });
}
