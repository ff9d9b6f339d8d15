//! The service on fakes: what users ask for, and what they get told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use microvm_core::{
    CreateRequest, Events, ForkRequest, RestoreRequest, ServiceError, SnapshotRequest, VmChange, VmFilter,
    What,
};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::Progress;
use microvm_ports::guest::ProcessEvent;
use microvm_ports::hypervisor::MachineExit;
use microvm_types::exec::ExecRequest;
use microvm_types::template::{Hook, HookPoint, NetworkMode, Overrides};
use microvm_types::vm::{Limits, NewVm, Rest};
use microvm_types::{OperationName, Phase, VmId, VmRef};
use support::{Host, Server, code, named, until};

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

/// The next change of phase that is told.
async fn changed(events: &mut Events) -> (VmId, Phase, Option<String>) {
    loop {
        let event = events.next().await.unwrap();
        if let What::Phase { to, reason, .. } = event.what {
            return (event.vm, to, reason);
        }
    }
}

#[test]
fn a_vm_is_created_used_stopped_started_paused_and_deleted() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let made = service.vms.create(named("dev")).await.unwrap();
        assert_eq!(made.record.phase(), Phase::Running);
        assert!(made.agent.is_some());
        assert_eq!(service.vms.get(&made.record.id.clone().into()).unwrap().record.name.as_str(), "dev");

        let guest = service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await.unwrap();
        let request = ExecRequest { command: vec!["echo".into(), "hi".into()], ..ExecRequest::default() };
        let mut process = guest.exec(&request).await.unwrap();
        let mut output = Vec::new();
        while let Some(event) = process.events.next().await {
            if let ProcessEvent::Stdout(bytes) = event {
                output.extend_from_slice(&bytes);
            }
        }
        assert_eq!(output, b"hi\n");
        drop((process, guest));

        assert_eq!(service.vms.pause(&vm("dev")).await.unwrap().record.phase(), Phase::Paused);
        assert_eq!(
            service.vms.pause(&vm("dev")).await.unwrap().record.phase(),
            Phase::Paused,
            "twice is fine"
        );
        assert_eq!(
            code(service.vms.guest(&vm("dev"), OperationName::GUEST_EXEC).await.map(drop)),
            "vm_not_running"
        );
        assert_eq!(service.vms.resume(&vm("dev")).await.unwrap().record.phase(), Phase::Running);
        assert_eq!(service.vms.stop(&vm("dev"), false, None).await.unwrap().record.phase(), Phase::Stopped);
        assert_eq!(code(service.vms.pause(&vm("dev")).await), "wrong_phase");
        assert_eq!(service.vms.start(&vm("dev")).await.unwrap().record.phase(), Phase::Running);
        service.vms.delete(&vm("dev"), false).await.unwrap();
        assert_eq!(code(service.vms.get(&vm("dev"))), "vm_not_found");
        assert_eq!(code(service.vms.delete(&vm("dev"), false).await), "vm_not_found");
    });
    host.assert_empty("after a whole life");
}

#[test]
fn bad_requests_are_refused_before_anything_is_made() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    let with = |overrides| CreateRequest { overrides, start: true, ..CreateRequest::default() };
    server.run(async {
        let over = |change: fn(&mut Overrides)| {
            let mut overrides = Overrides::default();
            change(&mut overrides);
            service.vms.create(with(overrides))
        };
        assert_eq!(code(over(|o| o.vcpus = Some(0)).await), "invalid_field");
        assert_eq!(code(over(|o| o.vcpus = Some(100)).await), "over_limit");
        assert_eq!(code(over(|o| o.memory_mib = Some(0)).await), "invalid_field");
        assert_eq!(code(over(|o| o.memory_mib = Some(u32::MAX)).await), "over_limit");
        // This hypervisor has no balloon to give a guest more by.
        let refused = over(|o| o.memory_max_mib = Some(1_024)).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.to_string().contains("balloon")),
            ("invalid_field", true),
            "{refused}"
        );
        assert_eq!(code(over(|o| o.image = Some("nope".into())).await), "image_not_found");
        assert_eq!(code(over(|o| o.kernel = Some("nope".into())).await), "kernel_not_found");
        assert_eq!(code(over(|o| o.network = Some(NetworkMode::Open)).await), "network_mode_unavailable");
        let template = CreateRequest { template: Some("nope".into()), ..CreateRequest::default() };
        assert_eq!(code(service.vms.create(template).await), "template_not_found");
        host.assert_empty_in(service);
        service.vms.create(named("dev")).await.unwrap();
        assert_eq!(code(service.vms.create(named("dev")).await), "vm_name_taken");
    });
    assert_eq!(host.hypervisor.machines().len(), 1, "the refused one left no machine");
}

#[test]
fn a_boot_that_fails_leaves_nothing_and_tells_why() {
    for operation in
        [Operation::CreateFiles, Operation::Launch, Operation::Resume, Operation::Connect, Operation::Insert]
    {
        let host = Host::new();
        let server = host.serve();
        host.hypervisor.script().next(operation, Fault::Fail);
        host.storage.script().next(operation, Fault::Fail);
        host.store.script().next(operation, Fault::Fail);
        let error = server.run(server.service.vms.create(named("dev"))).unwrap_err();
        assert!(!error.to_string().is_empty());
        host.assert_empty(&format!("after {operation:?} failed"));
        server.run(server.service.vms.create(named("dev"))).unwrap();
    }
}

#[test]
fn a_hanging_start_is_overtaken_by_a_delete() {
    let host = Host::new();
    let server = host.serve();
    host.hypervisor.script().next(Operation::Connect, Fault::Hang);
    server.run(async {
        let service = server.service.clone();
        let create = tokio::spawn(async move { service.vms.create(named("dev")).await });
        let mut events = server.service.vms.events().unwrap();
        while server.service.vms.get(&vm("dev")).is_err() || host.hypervisor.machines().is_empty() {
            tokio::task::yield_now().await;
        }
        server.service.vms.delete(&vm("dev"), false).await.unwrap();
        assert_eq!(create.await.unwrap().unwrap_err().code(), "overtaken");
        while changed(&mut events).await.1 != Phase::Deleted {}
    });
    host.assert_empty("after an overtaken start");
}

#[test]
fn a_lost_machine_fails_the_vm_with_the_reason() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let id = service.vms.create(named("a")).await.unwrap().record.id;
        let mut events = service.vms.events().unwrap();
        assert!(host.hypervisor.end(&id, MachineExit::Vmm("killed by signal 9".into())));
        while changed(&mut events).await.1 != Phase::Failed {}
        let record = service.vms.get(&vm("a")).unwrap().record;
        let reason = "killed by signal 9";
        assert!(record.failure.as_deref().unwrap_or_default().contains(reason), "{:?}", record.failure);
        assert_eq!(
            service.vms.start(&vm("a")).await.unwrap().record.phase(),
            Phase::Running,
            "it can start again"
        );
    });
}

#[test]
fn a_guest_that_powers_off_stops_and_one_that_resets_starts_again() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        let mut events = service.vms.events().unwrap();
        host.hypervisor.end(&id, MachineExit::GuestReset);
        while changed(&mut events).await.1 != Phase::Running {}
        host.hypervisor.end(&id, MachineExit::GuestShutdown);
        while changed(&mut events).await.1 != Phase::Stopped {}
        let mut request = named("once");
        request.vm.limits.ephemeral = true;
        let once = service.vms.create(request).await.unwrap().record.id;
        host.hypervisor.end(&once, MachineExit::GuestShutdown);
        loop {
            let (id, phase, _) = changed(&mut events).await;
            if id == once && phase == Phase::Deleted {
                break;
            }
        }
        service.vms.delete(&vm("dev"), false).await.unwrap();
    });
    host.assert_empty("after an ephemeral VM ended");
}

#[test]
fn a_guest_that_resets_in_a_loop_rests_before_it_starts_again() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        let mut events = service.vms.events().unwrap();
        let mut reset = async || {
            assert!(host.hypervisor.end(&id, MachineExit::GuestReset));
            let stopped = loop {
                let (_, phase, reason) = changed(&mut events).await;
                if phase == Phase::Stopped {
                    break reason;
                }
            };
            let since = std::time::Instant::now();
            while changed(&mut events).await.1 != Phase::Running {}
            (stopped.unwrap(), since.elapsed())
        };
        let (reason, rest) = reset().await;
        assert!(!reason.contains("again") && rest < Duration::from_secs(1), "{reason} {rest:?}");
        let (reason, rest) = reset().await;
        assert!(
            reason.contains("it starts in 1 s") && rest >= Duration::from_millis(900),
            "{reason} {rest:?}"
        );
        // Whoever asks for it has it at once, also while it rests.
        host.hypervisor.end(&id, MachineExit::GuestReset);
        while changed(&mut events).await.1 != Phase::Stopped {}
        service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(service.vms.get(&vm("dev")).unwrap().record.phase(), Phase::Running);
        service.vms.delete(&vm("dev"), false).await.unwrap();
    });
    host.assert_empty("after restarts");
}

#[test]
fn two_deletes_at_once_both_succeed() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        server.service.vms.create(named("dev")).await.unwrap();
        let target = vm("dev");
        let (a, b) = tokio::join!(
            server.service.vms.delete(&target, false),
            server.service.vms.delete(&target, false)
        );
        // On a busy host one may be done before the other has looked for the VM.
        let fine =
            |outcome: &Result<(), ServiceError>| matches!(outcome, Ok(()) | Err(ServiceError::UnknownVm(_)));
        assert!(fine(&a) && fine(&b) && (a.is_ok() || b.is_ok()), "{a:?} {b:?}");
    });
    host.assert_empty("after two deletes");
}

#[test]
fn hooks_run_in_order_and_can_refuse() {
    let host = Host::new();
    let server = host.serve();
    let hook = |at: &str, program: &str| -> Hook {
        serde_json::from_str(&format!(r#"{{"at":"{at}","program":["{program}"]}}"#)).unwrap()
    };
    let with = |hooks: Vec<Hook>| CreateRequest {
        overrides: Overrides { hooks, ..Overrides::default() },
        start: true,
        ..CreateRequest::default()
    };
    server.run(async {
        let refused = with(vec![hook("before_start", "/bin/false")]);
        assert_eq!(code(server.service.vms.create(refused).await), "hook_refused");
        host.assert_empty_in(&server.service);
        let points =
            ["before_create", "before_start", "after_create", "after_start", "before_delete", "after_delete"];
        let hooks = points.iter().map(|at| hook(at, "/bin/true")).collect();
        let id = server.service.vms.create(with(hooks)).await.unwrap().record.id;
        server.service.vms.delete(&id.into(), false).await.unwrap();
        assert_eq!(host.hooks.events()[1..], points.map(str::to_owned));
    });
}

#[test]
fn hooks_are_told_of_pauses_snapshots_restores_forks_and_failures_and_can_refuse() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    let hooks = |program: &str| -> Vec<Hook> {
        let hook = |at: &HookPoint| {
            serde_json::from_value(serde_json::json!({ "at": at, "program": [program] })).unwrap()
        };
        HookPoint::ALL[8..].iter().map(hook).collect()
    };
    let with = |name: &str, program: &str| CreateRequest {
        overrides: Overrides { hooks: hooks(program), ..Overrides::default() },
        ..named(name)
    };
    let snapshot =
        |name: &str| SnapshotRequest { name: Some(name.parse().unwrap()), ..SnapshotRequest::default() };
    let fork = || ForkRequest { count: 1, ..ForkRequest::default() };
    server.run(async {
        service.vms.create(with("dev", "/bin/true")).await.unwrap();
        let dev = vm("dev");
        service.vms.pause(&dev).await.unwrap();
        service.vms.resume(&dev).await.unwrap();
        service.branches.snapshot(&dev, snapshot("one"), Progress::ignored()).await.unwrap();
        service.branches.rollback(&dev, "one").await.unwrap();
        service.branches.fork(&dev, fork()).await.unwrap();
        host.hypervisor.end(&service.vms.get(&dev).unwrap().record.id, MachineExit::Killed);
        until("it has failed", || service.vms.get(&dev).unwrap().record.phase() == Phase::Failed).await;
        let told = || host.hooks.events();
        until("its failure was told", || told().last().is_some_and(|event| event == "on_failure")).await;
        let wanted = [
            "before_pause",
            "after_pause",
            "before_resume",
            "after_resume",
            "before_snapshot",
            "after_snapshot",
            "before_restore",
            "after_restore",
            "before_fork",
            "after_fork",
            "on_failure",
        ];
        assert_eq!(told(), wanted);
        // Hooks that prepare for something are not told of what cannot be done.
        assert!(service.branches.fork(&dev, fork()).await.is_err());
        assert!(service.branches.snapshot(&dev, snapshot("two"), Progress::ignored()).await.is_err());
        assert_eq!(told(), wanted);
        // A new VM of the snapshot is one that is restored.
        service
            .branches
            .restore("one", RestoreRequest { count: 1, ..RestoreRequest::default() })
            .await
            .unwrap();
        assert_eq!(told()[wanted.len()..], ["before_restore", "after_restore"]);

        service.vms.create(with("held", "/bin/false")).await.unwrap();
        let held = vm("held");
        let refusals = [
            service.vms.pause(&held).await.map(drop),
            service.branches.snapshot(&held, snapshot("two"), Progress::ignored()).await.map(drop),
            service.branches.fork(&held, fork()).await.map(drop),
        ];
        for refused in refusals {
            let error = refused.unwrap_err();
            assert_eq!(error.code(), "hook_refused");
            assert!(error.to_string().contains("before_"), "{error}");
        }
        assert_eq!(service.vms.get(&held).unwrap().record.phase(), Phase::Running);
    });
}

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

#[test]
fn listings_filter() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        for (name, team) in [("a-one", "red"), ("a-two", "blue"), ("b-one", "red")] {
            let mut request = named(name);
            request.vm.labels.insert("team".into(), team.into());
            server.service.vms.create(request).await.unwrap();
        }
    });
    let names = |filter: VmFilter| -> Vec<String> {
        server.service.vms.list(&filter).unwrap().into_iter().map(|vm| vm.record.name.to_string()).collect()
    };
    assert_eq!(names(VmFilter::default()), ["a-one", "a-two", "b-one"]);
    let red = VmFilter { labels: [("team".into(), "red".into())].into(), ..VmFilter::default() };
    assert_eq!(names(red), ["a-one", "b-one"]);
    assert_eq!(names(VmFilter { name_contains: Some("two".into()), ..VmFilter::default() }), ["a-two"]);
    assert!(names(VmFilter { phases: vec![Phase::Failed], ..VmFilter::default() }).is_empty());
}

/// Labels of the server's own machines hide a VM, or have it removed as a leftover.
#[test]
fn labels_of_the_server_are_its_own() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let labels = BTreeMap::from([("microvm.golden".to_owned(), "mine".to_owned())]);
        let request =
            CreateRequest { vm: NewVm { labels: labels.clone(), ..NewVm::default() }, ..named("dev") };
        assert_eq!(code(server.service.vms.create(request).await), "invalid_field");
        server.service.vms.create(named("dev")).await.unwrap();
        let fork =
            ForkRequest { count: 1, vm: NewVm { labels, ..NewVm::default() }, ..ForkRequest::default() };
        assert_eq!(code(server.service.branches.fork(&vm("dev"), fork).await), "invalid_field");
        server.service.vms.delete(&vm("dev"), false).await.unwrap();
    });
}
