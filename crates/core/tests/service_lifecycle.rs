//! The service on fakes: what users ask for, and what they get told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use branches::vm;
use futures::StreamExt as _;
use microvm_core::{CreateRequest, ForkRequest, ServiceError, VmFilter};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::guest::ProcessEvent;
use microvm_ports::hypervisor::MachineExit;
use microvm_types::exec::ExecRequest;
use microvm_types::template::{NetworkMode, Overrides};
use microvm_types::vm::NewVm;
use microvm_types::{OperationName, Phase};
use support::{Host, changed, code, named};

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
