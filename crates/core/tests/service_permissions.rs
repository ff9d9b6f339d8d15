//! Every method of every service asks for the permission of its operation before anything else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use branches::{forks, restored, vm};
use microvm_core::{
    AcquireRequest, ImageBase, ImageRecipe, LimitsChange, PoolChange, PoolRequest, PruneExtent, ServiceError,
    Services, SnapshotFilter, SnapshotRequest, VmChange, VmFilter, Wanted,
};
use microvm_ports::Progress;
use microvm_ports::storage::{ImageConfig, KernelSource};
use microvm_types::template::Overrides;
use microvm_types::{Caller, OperationName, Permission, Phase};
use support::{Host, named};

/// Refusals by method.
type Refused = BTreeMap<&'static str, Option<OperationName>>;

fn refusal<T>(outcome: Result<T, ServiceError>) -> Option<OperationName> {
    match outcome {
        Err(ServiceError::Forbidden { operation, .. }) => Some(operation),
        Err(_) | Ok(_) => None,
    }
}

macro_rules! refusals {
    ($($name:literal: $call:expr),* $(,)?) => { Refused::from([$(($name, refusal($call))),*]) };
}

/// Calls every method once; nothing that they name exists.
async fn call_all(all: &Services) -> Refused {
    let (web, silent) = (vm("web"), Progress::ignored);
    let pool = PoolRequest {
        name: "warm".parse().unwrap(),
        template: None,
        overrides: Overrides::default(),
        min: 1,
        max: 1,
        max_age_seconds: None,
        labels: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    let recipe = ImageRecipe {
        name: "x".to_owned(),
        base: ImageBase::Image("none".to_owned()),
        additions: microvm_ports::storage::Additions::default(),
        commands: Vec::new(),
        steps: Vec::new(),
        config: ImageConfig::default(),
        cache: false,
    };
    let snapshot = SnapshotRequest::default;
    let file = camino::Utf8Path::new("/nowhere/at/all");
    let Services { vms, branches, snapshots, goldens, pools, catalog, exports, volumes, host } = all;
    refusals! {
        "Catalog::commit": catalog.commit(&web, "x", &ImageConfig::default(), Progress::ignored()).await,
        "Catalog::tag_image": catalog.tag_image("none", "x").await,
        "Vms::create": vms.create(named("web")).await,
        "Vms::list": vms.list(&VmFilter::default()),
        "Vms::get": vms.get(&web),
        "Vms::start": vms.start(&web).await,
        "Vms::start_cold": vms.start_cold(&web).await,
        "Vms::stop": vms.stop(&web, false, None).await,
        "Vms::pause": vms.pause(&web).await,
        "Vms::resume": vms.resume(&web).await,
        "Vms::resize": vms.resize(&web, Some(64), None).await,
        "Vms::hibernate": vms.hibernate(&web).await,
        "Vms::restart": vms.restart(&web, false, None).await,
        "Vms::shutdown": vms.shutdown(&web, std::time::Duration::ZERO, true).await,
        "Vms::kill": vms.kill(&web, 9).await,
        "Vms::rename": vms.rename(&web, "other".parse().unwrap()).await,
        "Vms::change": vms.change(&web, VmChange::default()).await,
        "Vms::wait": vms.wait(&web, &Wanted { phases: vec![Phase::Stopped], gone: true }).await,
        "Vms::stats": vms.stats(&web).await,
        "Vms::delete": vms.delete(&web, false).await,
        "Vms::guest": vms.guest(&web, OperationName::GUEST_EXEC).await,
        "Vms::guest_at_hand": vms.guest_at_hand(&web, OperationName::GUEST_HEALTH_OF_ALL),
        "Vms::counters": vms.counters(&web).await,
        "Vms::console": vms.console(&web, None, 1).await,
        "Vms::events": vms.events(),
        "Vms::unreadable": vms.unreadable(),
        "Branches::fork": branches.fork(&web, forks(1, "child")).await,
        "Branches::snapshot": branches.snapshot(&web, snapshot(), silent()).await,
        "Branches::begin_snapshot": branches.begin_snapshot(&web, snapshot()).await,
        "Branches::restore": branches.restore("good", restored("again")).await,
        "Branches::rollback": branches.rollback(&web, "good").await,
        "Snapshots::list": snapshots.list(&SnapshotFilter::default()),
        "Snapshots::get": snapshots.get("good"),
        "Snapshots::find_of": snapshots.find_of(OperationName::SNAPSHOT_GET, &web, "good"),
        "Snapshots::vm_of": snapshots.vm_of(OperationName::SNAPSHOT_LIST_OF_VM, &web),
        "Snapshots::verify": snapshots.verify("good", silent()).await,
        "Snapshots::remove": snapshots.remove("good", true).await,
        "Snapshots::remove_unreadable": snapshots.remove_unreadable("good").await,
        "Snapshots::prune_old": snapshots.prune_old().await,
        "Snapshots::prune": snapshots.prune(Some(0), None, true).await,
        "Snapshots::statistics": snapshots.statistics(),
        "Snapshots::export": snapshots.export("good", file, silent()).await,
        "Snapshots::import": snapshots.import("x".parse().unwrap(), file, silent()).await,
        "Snapshots::unreadable": snapshots.unreadable(),
        "Goldens::collect_old": goldens.collect_old().await,
        "Goldens::versions": goldens.versions("none").await,
        "Goldens::update": goldens.update("none").await,
        "Goldens::rollback": goldens.rollback("none").await,
        "Pools::create": pools.create(pool).await,
        "Pools::list": pools.list(),
        "Pools::get": pools.get("none"),
        "Pools::resize": pools.resize("none", PoolChange::default()).await,
        "Pools::remove": pools.remove("none").await,
        "Pools::acquire": pools.acquire("none", AcquireRequest::default()).await,
        "Pools::release": pools.release("none", &web).await,
        "Pools::unreadable": pools.unreadable(),
        "Catalog::images": catalog.images().await,
        "Catalog::kernels": catalog.kernels().await,
        "Catalog::add_kernel": catalog.add_kernel("x", &KernelSource::Build, silent()).await,
        "Catalog::remove_kernel": catalog.remove_kernel("none").await,
        "Catalog::remove_image": catalog.remove_image("none").await,
        "Catalog::collect_garbage": catalog.collect_garbage().await,
        "Catalog::verify": catalog.verify(silent()).await,
        "Catalog::build_image": catalog.build_image(&recipe, silent()).await,
        "Catalog::templates": catalog.templates(),
        "Catalog::template": catalog.template("none"),
        "Catalog::check_template": catalog.check_template("none", ""),
        "Catalog::put_template": catalog.put_template("none", "", false),
        "Catalog::remove_template": catalog.remove_template("none"),
        "Exports::image": exports.image("none").await,
        "Exports::vm": exports.vm(&web).await,
        "Exports::changes": exports.changes(&web).await,
        "Volumes::create": volumes.create(&"data".parse().unwrap(), None).await,
        "Volumes::list": volumes.list().await,
        "Volumes::unreadable": volumes.unreadable(),
        "Volumes::get": volumes.get("none").await,
        "Volumes::remove": volumes.remove("none").await,
        "Volumes::prune": volumes.prune().await,
        "Host::hypervisors": host.hypervisors().await,
        "Host::holdings": host.holdings(OperationName::SYSTEM_DF).await,
        "Host::prunable": host.prunable(PruneExtent::All, OperationName::SYSTEM_DF).await,
        "Host::prune": host.prune(PruneExtent::All).await,
        "Host::images": host.images().await,
        "Host::kernels": host.kernels().await,
        "Host::settings": host.settings(),
        "Host::strays": host.strays().await,
        "Host::unreadable": host.unreadable(),
        "Host::health": host.health().await,
        "Host::ready_vmms": host.ready_vmms(),
        "Host::standby_vmms": host.standby_vmms(),
        "Host::phases": host.phases(),
        "Host::pools": host.pools(),
    }
}

/// Public methods of the services, as their sources have them.
fn methods() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut service = None;
            for line in std::fs::read_to_string(path).unwrap().lines() {
                if let Some(name) = line.strip_prefix("impl ").and_then(|rest| rest.strip_suffix(" {")) {
                    let services = [
                        "Vms",
                        "Branches",
                        "Snapshots",
                        "Goldens",
                        "Pools",
                        "Catalog",
                        "Exports",
                        "Volumes",
                        "Host",
                    ];
                    service = services.into_iter().find(|service| *service == name);
                }
                let method =
                    ["    pub fn ", "    pub async fn "].iter().find_map(|start| line.strip_prefix(start));
                if let (Some(service), Some(method)) = (service, method) {
                    let end = method.find(['(', '<']).unwrap();
                    found.insert(format!("{service}::{}", &method[..end]));
                }
            }
        }
    }
    found
}

#[test]
fn a_caller_that_may_nothing_is_refused_by_every_method() {
    let host = Host::new();
    let server = host.serve();
    let nobody = Caller { permissions: Some(Vec::new()), ..Caller::local("nobody") };
    let refused = server.run(call_all(&server.engine.as_caller(&nobody, "test")));
    let called: BTreeSet<String> = refused.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(called, methods(), "every method is called here");
    let open: Vec<_> = refused.iter().filter(|(_, operation)| operation.is_none()).collect();
    assert!(open.is_empty(), "open to anybody: {open:?}");
    host.assert_empty("after nobody called");
}

#[test]
fn a_permission_opens_the_methods_that_need_it_and_no_others() {
    let host = Host::new();
    let server = host.serve();
    let nobody = Caller { permissions: Some(Vec::new()), ..Caller::local("nobody") };
    let operations = server.run(call_all(&server.engine.as_caller(&nobody, "test")));
    let mut permissions: Vec<Permission> = Vec::new();
    for operation in operations.values().flatten() {
        // What is created would be found by the calls after it.
        if operation.permission() != Permission::VmCreate && !permissions.contains(&operation.permission()) {
            permissions.push(operation.permission());
        }
    }
    assert!(permissions.len() >= 9, "{permissions:?}");
    for permission in permissions {
        let caller = Caller { permissions: Some(vec![permission]), ..Caller::local("somebody") };
        let outcome = server.run(call_all(&server.engine.as_caller(&caller, "test")));
        for (method, operation) in &operations {
            let operation = operation.unwrap();
            // With one of two permissions a method is as closed as with none.
            let opens = operation.missing(&caller).is_none();
            assert_eq!(outcome[method], (!opens).then_some(operation), "{method} with {permission:?}");
        }
    }
}

#[test]
fn a_commit_reads_a_vm_and_makes_an_image_and_needs_both_permissions() {
    let host = Host::new();
    let server = host.serve();
    let outcome = |permissions: Vec<Permission>| {
        let caller = Caller { permissions: Some(permissions), ..Caller::local("somebody") };
        let catalog = server.engine.as_caller(&caller, "test").catalog;
        let (web, config) = (vm("web"), ImageConfig::default());
        server.run(async { catalog.commit(&web, "x", &config, Progress::ignored()).await }).unwrap_err()
    };
    let missing = |error: ServiceError| match error {
        ServiceError::Forbidden { missing, operation: OperationName::IMAGE_COMMIT, .. } => Some(missing),
        _ => None,
    };
    assert_eq!(missing(outcome(vec![Permission::ImageWrite])), Some(Permission::GuestFiles));
    assert_eq!(missing(outcome(vec![Permission::GuestFiles])), Some(Permission::ImageWrite));
    let both = outcome(vec![Permission::ImageWrite, Permission::GuestFiles]);
    assert!(matches!(both, ServiceError::UnknownVm(_)), "{both}");
}

#[test]
fn a_verb_needs_the_permission_of_all_that_it_may_do() {
    let host = Host::new();
    let server = host.serve();
    let operator = Caller {
        permissions: Some(vec![Permission::VmOperate, Permission::VmRead]),
        ..Caller::local("operator")
    };
    let operator = server.engine.as_caller(&operator, "test").vms;
    server.run(async {
        server.service.vms.create(named("web")).await.unwrap();
        let web = vm("web");
        let label = VmChange {
            labels: BTreeMap::from([("a".to_owned(), Some("b".to_owned()))]),
            ..VmChange::default()
        };
        operator.change(&web, label).await.unwrap();
        // Signals for programs are those for processes; a limit of what is deleted at its end deletes.
        assert_eq!(refusal(operator.kill(&web, 15).await), Some(OperationName::PROCESS_SIGNAL));
        let limits = LimitsChange { ephemeral: Some(true), ..LimitsChange::default() };
        let deletes = VmChange { limits, ..VmChange::default() };
        assert_eq!(refusal(operator.change(&web, deletes).await), Some(OperationName::VM_DELETE));
        // Numbers of the guest are read from the guest.
        assert!(operator.stats(&web).await.unwrap().guest.is_none());
        assert!(server.service.vms.stats(&web).await.unwrap().guest.is_some());
        operator.kill(&web, 9).await.unwrap();
    });
}
