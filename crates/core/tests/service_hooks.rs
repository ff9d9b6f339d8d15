//! Hooks on fakes: when they run, and what they can refuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::vm;
use microvm_core::{CreateRequest, ForkRequest, RestoreRequest, SnapshotRequest};
use microvm_ports::Progress;
use microvm_ports::hypervisor::MachineExit;
use microvm_types::Phase;
use microvm_types::template::{Hook, HookPoint, Overrides};
use support::{Host, code, named, until};

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
