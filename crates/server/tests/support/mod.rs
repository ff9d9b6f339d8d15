//! The whole server on fakes, in a folder of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use microvm_api::time::Zone;
use microvm_client::Client;
use microvm_core::{Engine, Ports, Settings};
use microvm_driver_fake::{FakeHooks, FakeHypervisor, FakeStorage, FrozenClock, MemoryStore};
use microvm_server::{App, AppSettings, BoundServer, Bounds, Limits, serve, socket_path};
use microvm_types::template::Template;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running server; ended when dropped.
#[allow(dead_code, reason = "not every test file needs a listening server")]
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) root: Utf8PathBuf,
    pub(crate) ending: CancellationToken,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// An engine on fakes.
pub(crate) async fn service() -> Arc<Engine> {
    open(MemoryStore::default()).await
}

/// An engine on fakes with a store of the caller's.
pub(crate) async fn open(store: MemoryStore) -> Arc<Engine> {
    on(store, FakeStorage::furnished().unwrap(), FakeHypervisor::default()).await
}

/// The same with a hypervisor of the caller's.
#[allow(dead_code, reason = "not every test file needs one")]
pub(crate) async fn service_on(hypervisor: FakeHypervisor) -> Arc<Engine> {
    on(MemoryStore::default(), FakeStorage::furnished().unwrap(), hypervisor).await
}

/// The same with an image and a kernel that cannot be read.
#[allow(dead_code, reason = "not every test file needs one")]
pub(crate) async fn open_with(store: MemoryStore, unreadable: &str) -> Arc<Engine> {
    let storage = FakeStorage::furnished().unwrap();
    storage.add_unreadable(unreadable);
    on(store, storage, FakeHypervisor::default()).await
}

/// The same with storage of the caller's.
#[allow(dead_code, reason = "not every test file needs one")]
pub(crate) async fn service_in(storage: FakeStorage) -> Arc<Engine> {
    on(MemoryStore::default(), storage, FakeHypervisor::default()).await
}

async fn on(store: MemoryStore, storage: FakeStorage, hypervisor: FakeHypervisor) -> Arc<Engine> {
    let storage = Arc::new(storage);
    let ports = Ports {
        connector: Arc::new(hypervisor.connector()),
        hypervisors: microvm_core::Hypervisors::new(Arc::new(hypervisor), Vec::new()),
        store: Arc::new(store),
        images: Arc::clone(&storage) as _,
        kernels: Arc::clone(&storage) as _,
        vm_storage: Arc::clone(&storage) as _,
        volumes: Arc::clone(&storage) as _,
        snapshots: storage,
        hooks: Arc::new(FakeHooks::default()),
        clock: Arc::new(FrozenClock::at(1_767_225_600_000)),
    };
    let template = r#"{"name": "linux-default", "image": "debian-python", "boot_timeout_ms": 2000}"#;
    let template: Template = serde_json::from_str(template).unwrap();
    let settings = Settings {
        templates: BTreeMap::from([("linux-default".to_owned(), template)]),
        stop_grace: Duration::from_millis(500),
        ..Settings::default()
    };
    Engine::open(ports, settings).await.unwrap()
}

/// Settings for a root.
pub(crate) fn settings(root: &camino::Utf8Path) -> AppSettings {
    AppSettings { root: root.to_owned(), zone: Zone::named("America/New_York").unwrap() }
}

/// A server that listens.
#[allow(dead_code, reason = "not every test file needs a listening server")]
pub(crate) async fn start() -> Server {
    serving(service().await)
}

/// A server that listens, with limits of its own.
#[allow(dead_code, reason = "not every test file needs a listening server")]
pub(crate) async fn start_with(limits: Limits) -> Server {
    serving_with(service().await, limits)
}

/// A server of this service that listens.
#[allow(dead_code, reason = "not every test file needs a listening server")]
pub(crate) fn serving(service: Arc<Engine>) -> Server {
    serving_with(service, Limits::default())
}

/// A server that listens, with bounds of its own.
#[allow(dead_code, reason = "not every test file needs a listening server")]
pub(crate) async fn start_bounded(bounds: Bounds) -> Server {
    serving_as(service().await, |app| app.with_bounds(bounds))
}

fn serving_with(service: Arc<Engine>, limits: Limits) -> Server {
    serving_as(service, |app| app.with_limits(limits))
}

/// A server of this service that listens, changed before.
#[allow(dead_code, reason = "not every test file needs a listening server")]
pub(crate) fn serving_as(service: Arc<Engine>, change: impl FnOnce(App) -> App) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let bound = BoundServer::bind(&root).unwrap();
    let ending = CancellationToken::new();
    let app = App::new(service, settings(&root), ending.clone());
    let serving = tokio::spawn(serve(bound, change(app)));
    Server { client: Client::new(socket_path(&root)), root, ending, serving, _folder: folder }
}
