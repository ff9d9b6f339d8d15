//! A host of fakes that outlives any number of servers on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microvm_core::{
    CreateRequest, Engine, Event, Events, HostLimits, Hypervisors, Observer, Ports, ServiceError, Services,
    Settings, What,
};
use microvm_driver_fake::{FakeHooks, FakeHypervisor, FakeStorage, FrozenClock, MemoryStore};
use microvm_ports::guest::{GuestConnector, ProcessEvent};
use microvm_ports::{StateStore, VmStorage};
use microvm_types::exec::ExecRequest;
use microvm_types::lifecycle::{LifecycleEvent, next};
use microvm_types::template::{HypervisorChoice, Template};
use microvm_types::{Caller, OperationName, Phase, VmId};

/// What stays when a server dies.
pub(crate) struct Host {
    pub(crate) hypervisor: FakeHypervisor,
    pub(crate) storage: FakeStorage,
    pub(crate) store: MemoryStore,
    pub(crate) clock: Arc<FrozenClock>,
    pub(crate) hooks: FakeHooks,
    /// Whether servers fork new VMs from golden snapshots.
    pub(crate) golden: bool,
    pub(crate) limits: HostLimits,
    pub(crate) prove: bool,
    /// Bytes of free disk that VMs which grow must leave.
    pub(crate) reserve: u64,
    /// Most named snapshots of one VM; those of tests have names.
    pub(crate) named_limit: Option<usize>,
    /// The default template.
    pub(crate) template: Template,
    /// Longest time for the look at a disk.
    pub(crate) disk_patience: Duration,
    /// Longest time for a guest to be reached again.
    pub(crate) adopt_deadline: Duration,
    /// Several hypervisors instead of one, and what connects to the guests of each.
    pub(crate) several: Option<(Hypervisors, Arc<dyn GuestConnector>)>,
}

/// A server process; dropping it without [`Server::close`] is `kill -9`.
pub(crate) struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    #[allow(dead_code, reason = "not every test file has other callers")]
    pub(crate) engine: Arc<Engine>,
    /// As the local user sees them.
    #[allow(dead_code, reason = "not every test file asks as the local user")]
    pub(crate) service: Services,
    replay: Arc<Replay>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A process that was killed does nothing any more: without waiting its tasks might still see what comes next.
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
        if !std::thread::panicking() {
            let wrong = self.replay.wrong.lock().unwrap();
            assert!(wrong.is_empty(), "changes that the table does not know: {wrong:?}");
        }
    }
}

/// Holds every change of phase against the table.
#[derive(Default)]
struct Replay {
    phases: Mutex<HashMap<VmId, Phase>>,
    wrong: Mutex<Vec<String>>,
}

impl Observer for Replay {
    fn note(&self, event: &Event) {
        let What::Phase { from, to, .. } = &event.what else { return };
        let arrow = LifecycleEvent::ALL.iter().any(|step| next(*from, *step) == Ok(*to));
        let before = self.phases.lock().unwrap().insert(event.vm.clone(), *to);
        if (arrow || from == to) && before.is_none_or(|before| before == *from) {
            return;
        }
        let name = &event.name;
        self.wrong.lock().unwrap().push(format!("{name} went from {from} ({before:?} told) to {to}"));
    }
}

impl Server {
    /// Runs a request to its end.
    pub(crate) fn run<F: Future>(&self, work: F) -> F::Output {
        self.runtime.as_ref().expect("it lives").block_on(work)
    }

    #[allow(dead_code, reason = "not every test file has requests that hang")]
    /// Runs a request, but no longer than a moment: for requests that hang.
    pub(crate) fn run_a_moment<F: Future>(&self, work: F) -> Option<F::Output> {
        let limited = async { tokio::time::timeout(Duration::from_millis(300), work).await.ok() };
        self.run(limited)
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            hypervisor: FakeHypervisor::default(),
            storage: FakeStorage::furnished().unwrap(),
            store: MemoryStore::default(),
            clock: Arc::default(),
            hooks: FakeHooks::default(),
            golden: false,
            limits: HostLimits::default(),
            prove: false,
            reserve: Settings::default().disk_reserve,
            named_limit: Some(10),
            template: serde_json::from_str(
                r#"{"name": "linux-default", "image": "debian-python", "boot_timeout_ms": 2000}"#,
            )
            .unwrap(),
            disk_patience: Duration::from_secs(2),
            adopt_deadline: Duration::from_secs(2),
            several: None,
        }
    }

    #[allow(dead_code, reason = "not every test file forks")]
    pub(crate) fn with_golden() -> Self {
        Self { golden: true, ..Self::new() }
    }

    pub(crate) fn serve(&self) -> Server {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let storage = Arc::new(self.storage.clone());
        let (hypervisors, connector) = self.several.clone().unwrap_or_else(|| {
            let one = Hypervisors::new(Arc::new(self.hypervisor.clone()), Vec::new());
            (one, Arc::new(self.hypervisor.connector()) as _)
        });
        let ports = Ports {
            hypervisors,
            connector,
            store: Arc::new(self.store.clone()),
            images: Arc::clone(&storage) as _,
            kernels: Arc::clone(&storage) as _,
            vm_storage: Arc::clone(&storage) as _,
            volumes: Arc::clone(&storage) as _,
            snapshots: storage,
            hooks: Arc::new(self.hooks.clone()),
            clock: Arc::clone(&self.clock) as _,
        };
        let template = self.template.clone();
        // Templates that name a driver are called after it.
        let mut templates = BTreeMap::from([("linux-default".to_owned(), template.clone())]);
        let named = if self.several.is_some() { ["qemu", "nowhere"].as_slice() } else { &[] };
        templates.extend(named.iter().map(|&name| {
            let hypervisor = HypervisorChoice::try_from(name.to_owned()).unwrap();
            (name.to_owned(), Template { hypervisor, ..template.clone() })
        }));
        let settings = Settings {
            templates,
            stop_grace: Duration::from_millis(500),
            kill_deadline: Duration::from_millis(500),
            export_patience: Duration::from_millis(100),
            balloon_patience: Duration::from_millis(200),
            disk_patience: self.disk_patience,
            adopt_deadline: self.adopt_deadline,
            golden: self.golden,
            limits: self.limits,
            prove_snapshots: self.prove,
            disk_reserve: self.reserve,
            named_snapshots_per_vm: self.named_limit,
            ..Settings::default()
        };
        let engine = runtime.block_on(Engine::open(ports, settings)).unwrap();
        let service = engine.as_caller(&Caller::local("test"), "test");
        let replay = Arc::new(Replay::default());
        engine.observe(Arc::clone(&replay) as _);
        Server { runtime: Some(runtime), engine, service, replay }
    }

    #[allow(dead_code, reason = "not every test file looks for leftovers")]
    /// Nothing of any VM is left.
    pub(crate) fn assert_empty(&self, when: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(self.store.vms().await.unwrap().records, [], "rows are left {when}");
            assert_eq!(self.storage.vm_directories().await.unwrap(), [], "directories are left {when}");
        });
        assert!(self.hypervisor.machines().is_empty(), "machines are left {when}");
    }

    /// Like [`Host::assert_empty`], from inside a server's runtime.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn assert_empty_in(&self, service: &Services) {
        assert!(service.vms.list(&microvm_core::VmFilter::default()).unwrap().is_empty(), "VMs are left");
        assert!(self.hypervisor.machines().is_empty(), "machines are left");
    }

    /// Removes the copies of the records that the directories of VMs hold: servers of earlier versions kept none.
    #[allow(dead_code, reason = "not every test file has roots of earlier versions")]
    pub(crate) fn forget_records(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for id in runtime.block_on(self.storage.vm_directories()).unwrap() {
            let kept = self.storage.vm_directory(&id).join("record.json");
            assert!(std::fs::remove_file(&kept).is_ok() || !kept.exists());
        }
    }

    #[allow(dead_code, reason = "not every test file plans faults")]
    pub(crate) fn clear_faults(&self) {
        self.hypervisor.script().clear();
        self.storage.script().clear();
        self.store.script().clear();
    }
}

#[allow(dead_code, reason = "not every test file creates VMs")]
pub(crate) fn named(name: &str) -> CreateRequest {
    CreateRequest { name: Some(name.parse().unwrap()), start: true, ..CreateRequest::default() }
}

#[allow(dead_code, reason = "not every test file looks at codes")]
pub(crate) fn code<T: std::fmt::Debug>(outcome: Result<T, ServiceError>) -> &'static str {
    outcome.unwrap_err().code()
}

/// What a shell in a VM prints.
#[allow(dead_code, reason = "not every test file runs commands")]
pub(crate) async fn say(service: &Services, vm: &str, script: &str) -> String {
    use futures::StreamExt as _;
    let guest = service.vms.guest(&vm.parse().unwrap(), OperationName::GUEST_EXEC).await.unwrap();
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut process = guest.exec(&ExecRequest { command, ..ExecRequest::default() }).await.unwrap();
    let mut output = Vec::new();
    while let Some(event) = process.events.next().await {
        if let ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) = event {
            output.extend_from_slice(&bytes);
        }
    }
    String::from_utf8(output).unwrap().trim().to_owned()
}

/// Waits until something holds that no event tells of.
#[allow(dead_code, reason = "not every test file waits")]
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The next change of phase that is told.
#[allow(dead_code, reason = "not every test file looks at events")]
pub(crate) async fn changed(events: &mut Events) -> (VmId, Phase, Option<String>) {
    loop {
        let event = events.next().await.unwrap();
        if let What::Phase { to, reason, .. } = event.what {
            return (event.vm, to, reason);
        }
    }
}
