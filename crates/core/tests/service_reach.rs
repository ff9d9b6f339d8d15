//! Agents that do not answer: their machines are left alone, and they are reached again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use std::time::Duration;

use microvm_driver_fake::{Fault, Operation};
use microvm_ports::guest::CloseReason;
use microvm_types::{ErrorKind, OperationName, Phase, VmRef};
use support::{Host, named, say, until};

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

fn lost() -> CloseReason {
    CloseReason::HeartbeatLost(Duration::from_secs(30))
}

/// The agent answers no attempt for now.
fn deaf(host: &Host) {
    for _ in 0..100 {
        host.hypervisor.script().next(Operation::Connect, Fault::Fail);
    }
}

#[test]
fn a_lost_channel_is_opened_again_and_the_machine_goes_on() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        for reason in [lost(), CloseReason::EndOfStream, CloseReason::Protocol("nonsense".to_owned())] {
            let before = service.vms.create(named("dev")).await.unwrap().record;
            say(service, "dev", "echo kept > /root/note").await;
            let kills = host.hypervisor.script().calls(Operation::Kill);
            assert!(host.hypervisor.close_channel(&before.id, reason.clone()));
            until("a new epoch", || service.vms.get(&dev()).unwrap().record.epoch > before.epoch).await;
            assert_eq!(say(service, "dev", "cat /root/note").await, "kept", "after {reason:?}");
            let view = service.vms.get(&dev()).unwrap();
            assert_eq!((view.record.phase(), view.unreachable), (Phase::Running, None));
            assert_eq!(view.record.started_ms, before.started_ms, "it was not started again");
            assert_eq!(host.hypervisor.script().calls(Operation::Kill), kills);
            service.vms.delete(&dev(), false).await.unwrap();
        }
    });
}

#[test]
fn an_agent_that_cannot_be_reached_is_a_flag_and_no_death_sentence() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let record = service.vms.create(named("dev")).await.unwrap().record;
        say(service, "dev", "echo kept > /root/note").await;
        host.clock.advance(5_000);
        let lost_ms = microvm_ports::Clock::now_ms(&*host.clock);
        let kills = host.hypervisor.script().calls(Operation::Kill);
        deaf(&host);
        assert!(host.hypervisor.close_channel(&record.id, lost()));
        until("it is unreachable", || service.vms.get(&dev()).unwrap().unreachable.is_some()).await;
        host.clock.advance(7_000);
        let error = service.vms.guest(&dev(), OperationName::GUEST_EXEC).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("vm_unreachable", ErrorKind::Unavailable));
        assert!(error.to_string().contains("for 7 s"), "{error}");
        let view = service.vms.get(&dev()).unwrap();
        let unreachable = view.unreachable.unwrap();
        assert_eq!((view.record.phase(), view.record.failure), (Phase::Running, None));
        assert_eq!(unreachable.since_ms, lost_ms);
        assert!(unreachable.reason.contains("heartbeat"), "{}", unreachable.reason);
        assert_eq!(host.hypervisor.machines().len(), 1, "its machine is gone");
        assert_eq!(host.hypervisor.script().calls(Operation::Kill), kills);
        // It can be paused and resumed, and answers when its agent does.
        service.vms.pause(&dev()).await.unwrap();
        assert_eq!(
            service.vms.get(&dev()).unwrap().unreachable,
            None,
            "nobody misses an answer of a paused VM"
        );
        assert_eq!(service.vms.resume(&dev()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        let view = service.vms.get(&dev()).unwrap();
        assert_eq!(view.record.phase(), Phase::Running, "its processors run");
        assert!(view.unreachable.is_some());
        host.clear_faults();
        until("it answers", || service.vms.get(&dev()).unwrap().unreachable.is_none()).await;
        assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
    });
}

#[test]
fn a_restart_of_the_server_spares_machines_whose_agent_does_not_answer() {
    let host = Host::new();
    let first = host.serve();
    first.run(first.service.vms.create(named("dev"))).unwrap();
    first.run(say(&first.service, "dev", "echo kept > /root/note"));
    drop(first);
    for step in [Operation::Connect, Operation::Resume] {
        for _ in 0..100 {
            host.hypervisor.script().next(step, Fault::Fail);
        }
        let server = host.serve();
        let service = &server.service;
        server.run(async {
            until("it is unreachable", || service.vms.get(&dev()).unwrap().unreachable.is_some()).await;
            assert_eq!(
                service.vms.guest(&dev(), OperationName::GUEST_EXEC).await.unwrap_err().code(),
                "vm_unreachable"
            );
            assert_eq!(service.vms.get(&dev()).unwrap().record.phase(), Phase::Running, "{step:?}");
            assert_eq!(host.hypervisor.machines().len(), 1, "its machine was ended");
            host.clear_faults();
            until("it answers", || service.vms.get(&dev()).unwrap().unreachable.is_none()).await;
            assert_eq!(say(service, "dev", "cat /root/note").await, "kept");
        });
    }
}

#[test]
fn a_vm_that_nobody_can_use_is_not_idle() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let mut request = named("dev");
        request.vm.limits = microvm_types::vm::Limits { idle_seconds: Some(1), ..Default::default() };
        let id = service.vms.create(request).await.unwrap().record.id;
        deaf(&host);
        assert!(host.hypervisor.close_channel(&id, lost()));
        until("it is unreachable", || service.vms.get(&dev()).unwrap().unreachable.is_some()).await;
        host.clock.advance(3_600_000);
        // A round of its actor, which looks at its limits before it does anything.
        for _ in 0..3 {
            assert_eq!(service.vms.resume(&dev()).await.unwrap().record.phase(), Phase::Running);
        }
        assert!(service.vms.get(&dev()).unwrap().unreachable.is_some());
        host.clear_faults();
        until("it answers", || service.vms.get(&dev()).unwrap().unreachable.is_none()).await;
        assert_eq!(service.vms.get(&dev()).unwrap().record.phase(), Phase::Running);
    });
}

#[test]
fn an_unreachable_vm_can_be_stopped_started_and_deleted_at_once() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        // The try to reach it hangs: a stop does not wait for it.
        host.hypervisor.script().next(Operation::Connect, Fault::Hang);
        host.hypervisor.script().next(Operation::Connect, Fault::Fail);
        assert!(host.hypervisor.close_channel(&id, lost()));
        until("it is unreachable", || service.vms.get(&dev()).unwrap().unreachable.is_some()).await;
        let view = service.vms.stop(&dev(), false, None).await.unwrap();
        assert_eq!((view.record.phase(), view.unreachable), (Phase::Stopped, None));
        host.clear_faults();
        service.vms.start(&dev()).await.unwrap();
        assert_eq!(say(service, "dev", "echo here").await, "here");
        host.hypervisor.script().next(Operation::Connect, Fault::Hang);
        assert!(host.hypervisor.close_channel(&id, lost()));
        until("it is unreachable", || service.vms.get(&dev()).unwrap().unreachable.is_some()).await;
        service.vms.delete(&dev(), false).await.unwrap();
    });
    drop(server);
    host.assert_empty("after an unreachable VM was deleted");
}
