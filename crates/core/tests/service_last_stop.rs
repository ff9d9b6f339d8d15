//! Each way in which a VM ends leaves its reason with it, also for the next server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_core::{CreateRequest, Events, What};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::Clock as _;
use microvm_ports::hypervisor::MachineExit;
use microvm_types::vm::{Limits, NewVm};
use microvm_types::{LastStop, Phase, StopReason, VmRef};
use support::{Host, Server, named, until};

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

fn last_stop(server: &Server) -> Option<LastStop> {
    server.service.vms.get(&dev()).unwrap().record.last_stop
}

fn reason(server: &Server) -> Option<StopReason> {
    last_stop(server).map(|stop| stop.reason)
}

fn phase(server: &Server) -> Phase {
    server.service.vms.get(&dev()).unwrap().record.phase()
}

fn limited(limits: Limits) -> CreateRequest {
    CreateRequest { vm: NewVm { limits, ..NewVm::default() }, ..named("dev") }
}

/// Reason that is told with the next change to `phase`.
async fn told(events: &mut Events, phase: Phase) -> Option<StopReason> {
    loop {
        match events.next().await.unwrap().what {
            What::Phase { to, stop, .. } if to == phase => return stop,
            _ => {}
        }
    }
}

#[test]
fn what_somebody_asked_for_is_kept_while_the_vm_runs_again() {
    let host = Host::new();
    let first = host.serve();
    first.run(async {
        let vms = &first.service.vms;
        let made = vms.create(named("dev")).await.unwrap();
        assert_eq!(made.record.last_stop, None);
        let mut events = vms.events().unwrap();
        host.clock.advance(5_000);
        vms.stop(&dev(), false, None).await.unwrap();
        assert_eq!(told(&mut events, Phase::Stopped).await, Some(StopReason::User));
        let at_ms = made.record.created_ms + 5_000;
        let stop = LastStop { reason: StopReason::User, at_ms, detail: None };
        assert_eq!(last_stop(&first), Some(stop.clone()));
        vms.start(&dev()).await.unwrap();
        assert_eq!(told(&mut events, Phase::Running).await, None, "a start is no end");
        assert_eq!(last_stop(&first), Some(stop));
        vms.hibernate(&dev()).await.unwrap();
        assert_eq!(told(&mut events, Phase::Hibernated).await, Some(StopReason::User));
    });
    drop(first);
    assert_eq!(reason(&host.serve()), Some(StopReason::User), "the next server knows it");
}

#[test]
fn ends_of_a_machine_are_told_apart() {
    let exits = [
        (MachineExit::GuestShutdown, Phase::Stopped, StopReason::GuestPoweredOff),
        (MachineExit::GuestPanic, Phase::Failed, StopReason::GuestPanic),
        (MachineExit::Vmm("signal 9".to_owned()), Phase::Failed, StopReason::VmmDied),
    ];
    for (exit, phase, wanted) in exits {
        let host = Host::new();
        let first = host.serve();
        first.run(async {
            let id = first.service.vms.create(named("dev")).await.unwrap().record.id;
            let mut events = first.service.vms.events().unwrap();
            let detail = Some(exit.to_string());
            assert!(host.hypervisor.end(&id, exit));
            assert_eq!(told(&mut events, phase).await, Some(wanted));
            until("it is shown", || reason(&first) == Some(wanted)).await;
            assert_eq!(last_stop(&first).unwrap().detail, detail);
        });
        drop(first);
        assert_eq!(reason(&host.serve()), Some(wanted), "the next server knows it");
    }
}

#[test]
fn limits_are_told_apart_also_of_a_vm_that_they_delete() {
    let idle = Limits { idle_seconds: Some(60), ..Limits::default() };
    let lifetime = Limits { lifetime_seconds: Some(60), ..Limits::default() };
    let asleep = Limits { hibernate_seconds: Some(60), ..Limits::default() };
    let wanted = [
        (idle, Phase::Stopped, StopReason::IdleLimit),
        (lifetime, Phase::Stopped, StopReason::LifetimeLimit),
        (asleep, Phase::Hibernated, StopReason::IdleLimit),
        (Limits { ephemeral: true, ..lifetime }, Phase::Deleting, StopReason::LifetimeLimit),
        (Limits { ephemeral: true, ..idle }, Phase::Deleting, StopReason::IdleLimit),
    ];
    for (limits, phase, wanted) in wanted {
        let host = Host::new();
        let server = host.serve();
        server.run(async {
            server.service.vms.create(limited(limits)).await.unwrap();
            let mut events = server.service.vms.events().unwrap();
            host.clock.advance(60_000);
            assert_eq!(told(&mut events, phase).await, Some(wanted), "{limits:?}");
        });
        if !limits.ephemeral {
            drop(server);
            assert_eq!(reason(&host.serve()), Some(wanted), "the next server knows it");
        }
    }
}

#[test]
fn a_start_that_fails_is_told_and_one_without_a_start_has_no_reason() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let vms = &server.service.vms;
        vms.create(CreateRequest { start: false, ..named("dev") }).await.unwrap();
        assert_eq!(reason(&server), None, "it never ran");
        host.hypervisor.script().next(Operation::Launch, Fault::Fail);
        vms.start(&dev()).await.unwrap_err();
        assert_eq!(reason(&server), Some(StopReason::StartFailed));
        assert!(last_stop(&server).unwrap().detail.is_some());
    });
}

#[test]
fn what_a_crash_of_the_server_interrupted_is_told_by_the_next_one() {
    // A start, a stop, and a machine that is gone.
    for (hangs, wanted) in [
        (Operation::Launch, StopReason::ServerShutdown),
        (Operation::Kill, StopReason::LifetimeLimit),
        (Operation::List, StopReason::LostWhileServerDown),
    ] {
        let host = Host::new();
        let first = host.serve();
        let limits = Limits { lifetime_seconds: Some(3_600), ..Limits::default() };
        let id = first.run(first.service.vms.create(limited(limits))).unwrap().record.id;
        match hangs {
            Operation::Launch => {
                first.run(first.service.vms.stop(&dev(), true, None)).unwrap();
                host.hypervisor.script().next(hangs, Fault::Hang);
                assert!(first.run_a_moment(first.service.vms.start(&dev())).is_none());
            }
            Operation::Kill => {
                host.hypervisor.script().next(hangs, Fault::Hang);
                host.clock.advance(3_600_000);
                let stopping = || phase(&first) == Phase::Stopping;
                first.run(until("its stop is under way", stopping));
                host.clock.advance(60_000);
            }
            _ => {}
        }
        drop(first);
        host.clear_faults();
        if wanted == StopReason::LostWhileServerDown {
            assert!(host.hypervisor.end(&id, MachineExit::Vmm("the host was restarted".to_owned())));
        }
        let second = host.serve();
        let settled = || !phase(&second).is_transient() && phase(&second) != Phase::Running;
        second.run(until("the next server has taken it up", settled));
        assert_eq!(reason(&second), Some(wanted));
        if hangs == Operation::Kill {
            let asked_ms = host.clock.now_ms() - 60_000;
            assert_eq!(last_stop(&second).unwrap().at_ms, asked_ms, "when it was asked for");
        }
    }
}
