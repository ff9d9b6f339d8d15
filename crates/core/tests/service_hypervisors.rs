//! Several hypervisor drivers on one server: which of them a VM gets, and how it finds its own again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use branches::{forks, restored, snap, vm};
use camino::Utf8Path;
use microvm_core::{AcquireRequest, CreateRequest, Hypervisors, PoolRequest};
use microvm_driver_fake::{Character, FakeHypervisor};
use microvm_ports::StateStore as _;
use microvm_ports::guest::{Guest, GuestConnector, GuestEndpoint, GuestError, Identity};
use microvm_ports::hypervisor::{
    Capabilities, ConsolePart, Hypervisor, LaunchError, Loader, Machine, MachineRecord, MachineSpec,
};
use microvm_types::template::{HypervisorChoice, Overrides};
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, VmId};
use support::{Host, code, named, say};

/// A driver under the name of the first one that this program had.
struct CalledQemu(FakeHypervisor);

#[async_trait]
impl Hypervisor for CalledQemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn probe(&self) -> Result<Capabilities, LaunchError> {
        self.0.probe().await
    }

    fn loader(&self) -> Option<&dyn Loader> {
        self.0.loader()
    }

    async fn launch(&self, spec: &MachineSpec) -> Result<Arc<dyn Machine>, LaunchError> {
        self.0.launch(spec).await
    }

    async fn adopt(
        &self,
        id: &VmId,
        directory: &Utf8Path,
        record: &MachineRecord,
    ) -> Result<Arc<dyn Machine>, LaunchError> {
        self.0.adopt(id, directory, record).await
    }

    async fn sweep(
        &self,
        id: &VmId,
        directory: &Utf8Path,
        record: Option<&MachineRecord>,
    ) -> Result<(), LaunchError> {
        self.0.sweep(id, directory, record).await
    }

    async fn end_strays(&self, folder: &Utf8Path, known: &HashSet<VmId>) -> Result<Vec<VmId>, LaunchError> {
        self.0.end_strays(folder, known).await
    }

    async fn console(
        &self,
        directory: &Utf8Path,
        from: Option<u64>,
        limit: usize,
    ) -> std::io::Result<ConsolePart> {
        self.0.console(directory, from, limit).await
    }
}

/// Reaches the guests of either.
struct Either([Arc<dyn GuestConnector>; 2]);

#[async_trait]
impl GuestConnector for Either {
    async fn connect(
        &self,
        endpoint: &GuestEndpoint,
        epoch: u64,
        identity: &Identity,
        limit: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let [one, other] = &self.0;
        match one.connect(endpoint, epoch, identity, Duration::from_millis(200)).await {
            Err(GuestError::Unreachable(_)) => other.connect(endpoint, epoch, identity, limit).await,
            found => found,
        }
    }
}

/// A host whose first driver is `fake-stops`, beside one that is called `qemu`.
fn host() -> (Host, FakeHypervisor) {
    let (first, qemu) = (FakeHypervisor::of(Character::Stops), FakeHypervisor::default());
    let hypervisors = Hypervisors::new(Arc::new(first.clone()), vec![Arc::new(CalledQemu(qemu.clone()))])
        .with_unnamed("qemu");
    let connector = Either([Arc::new(first.connector()), Arc::new(qemu.connector())]);
    let several = Some((hypervisors, Arc::new(connector) as Arc<dyn GuestConnector>));
    (Host { hypervisor: first, several, ..Host::new() }, qemu)
}

/// A template that names a driver.
fn on(name: &str, hypervisor: &str) -> CreateRequest {
    CreateRequest { template: Some(hypervisor.to_owned()), ..named(name) }
}

#[test]
fn a_template_names_its_driver_and_a_vm_keeps_it() {
    let (host, qemu) = host();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let auto = service.vms.create(named("auto")).await.unwrap().record;
        assert_eq!(auto.template.hypervisor.to_string(), "fake-stops", "the first one runs what names none");
        let named = service.vms.create(on("named", "qemu")).await.unwrap().record;
        assert_eq!(named.template.hypervisor.to_string(), "qemu");
        let ids = |driver: &FakeHypervisor| driver.machines().into_keys().collect::<Vec<_>>();
        assert_eq!((ids(&host.hypervisor), ids(&qemu)), (vec![auto.id], vec![named.id]));
        let refused = service.vms.create(on("no", "nowhere")).await;
        let text = refused.as_ref().unwrap_err().to_string();
        assert!(text.contains("`nowhere`") && text.contains("fake-stops, qemu"), "{text}");
        assert_eq!(code(refused), "unknown_hypervisor");
        // What is made of a VM belongs to its driver.
        say(service, "named", "echo before > /root/note").await;
        snap(service, "named", "one").await.unwrap();
        service.branches.fork(&vm("named"), forks(1, "child")).await.unwrap();
        service.branches.restore("one", restored("back")).await.unwrap();
        assert_eq!(qemu.machines().len(), 3);
        assert_eq!(say(service, "back", "cat /root/note").await, "before");
        service.branches.fork(&vm("auto"), forks(1, "other")).await.unwrap();
        assert_eq!((host.hypervisor.machines().len(), qemu.machines().len()), (2, 3));
    });
    drop(server);
    // The next server finds each machine by its driver.
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        for name in ["auto", "named", "child", "back", "other"] {
            assert_eq!(say(service, name, "hostname").await, name);
        }
        for name in ["auto", "named", "child", "back", "other"] {
            service.vms.delete(&vm(name), false).await.unwrap();
        }
        assert!(host.hypervisor.machines().is_empty() && qemu.machines().is_empty(), "a machine is left");
    });
}

/// A request that names a driver.
fn over(name: &str, hypervisor: &str) -> CreateRequest {
    let hypervisor = Some(HypervisorChoice::try_from(hypervisor.to_owned()).unwrap());
    CreateRequest { overrides: Overrides { hypervisor, ..Overrides::default() }, ..named(name) }
}

#[test]
fn a_request_names_another_driver_than_its_template_and_the_vm_sleeps_and_wakes_there() {
    let (host, qemu) = host();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let made = service.vms.create(over("dev", "qemu")).await.unwrap().record;
        assert_eq!(made.template.hypervisor.to_string(), "qemu");
        assert_eq!(
            service.vms.create(named("auto")).await.unwrap().record.template.hypervisor.to_string(),
            "fake-stops"
        );
        assert_eq!(code(service.vms.create(over("no", "nowhere")).await), "unknown_hypervisor");
        say(service, "dev", "echo before > /root/note").await;
        service.branches.fork(&vm("dev"), forks(1, "child")).await.unwrap();
        service.vms.hibernate(&vm("dev")).await.unwrap();
        assert_eq!(qemu.machines().len(), 1, "only its child is left");
        service.vms.start(&vm("dev")).await.unwrap();
        assert_eq!(say(service, "dev", "cat /root/note").await, "before");
        assert_eq!((host.hypervisor.machines().len(), qemu.machines().len()), (1, 2), "it woke elsewhere");
        for name in ["dev", "child"] {
            let record = service.vms.get(&vm(name)).unwrap().record;
            assert_eq!(record.template.hypervisor.to_string(), "qemu", "{name}");
        }
    });
}

#[test]
fn a_restored_snapshot_and_a_pool_keep_the_driver_of_their_request() {
    let (host, qemu) = host();
    let server = host.serve();
    let service = &server.service;
    let driver = |record: &VmRecord| record.template.hypervisor.to_string();
    server.run(async {
        service.vms.create(over("dev", "qemu")).await.unwrap();
        say(service, "dev", "echo before > /root/note").await;
        snap(service, "dev", "one").await.unwrap();
        service.branches.restore("one", restored("back")).await.unwrap();
        assert_eq!(driver(&service.vms.get(&vm("back")).unwrap().record), "qemu");
        assert_eq!(say(service, "back", "cat /root/note").await, "before");
        let pool = PoolRequest {
            name: "py".parse().unwrap(),
            template: None,
            overrides: over("py", "qemu").overrides,
            min: 1,
            max: 3,
            max_age_seconds: None,
            labels: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
        };
        service.pools.create(pool).await.unwrap();
    });
    drop(server);
    // The next server fills the pool by the same driver.
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        for name in ["first", "second"] {
            let request = AcquireRequest { name: Some(name.parse().unwrap()), ..AcquireRequest::default() };
            let acquired = service.pools.acquire("py", request).await.unwrap().0.record;
            assert_eq!(driver(&acquired), "qemu");
            assert!(qemu.machines().contains_key(&acquired.id), "{name} runs elsewhere");
        }
        assert!(host.hypervisor.machines().is_empty(), "something runs on the first driver");
    });
}

#[test]
fn a_record_of_an_earlier_version_belongs_to_qemu() {
    let (host, qemu) = host();
    let server = host.serve();
    let made = server.run(async {
        let made = server.service.vms.create(on("old", "qemu")).await.unwrap().record;
        server.service.vms.create(on("gone", "qemu")).await.unwrap();
        made
    });
    drop(server);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for mut record in host.store.vms().await.unwrap().records {
            // As a record was written before there were several, and one of a driver that is not there any more.
            let missing = HypervisorChoice::try_from("missing".to_owned()).unwrap();
            let is_old = record.id == made.id;
            record.template.hypervisor = if is_old { HypervisorChoice::Auto } else { missing };
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(text.contains("\"hypervisor\""), !is_old, "{text}");
            host.store.update_vm(&record).await.unwrap();
        }
    });
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        assert_eq!(say(service, "old", "hostname").await, "old");
        assert!(qemu.machines().contains_key(&made.id));
        // Its machine lives, and nobody here can reach it: that is said, and nothing is given up.
        let gone = service.vms.get(&vm("gone")).unwrap();
        assert_eq!(gone.record.phase(), Phase::Running);
        assert!(gone.unreachable.is_some_and(|why| why.reason.contains("`missing`")));
        assert_eq!(qemu.machines().len(), 2);
    });
}
