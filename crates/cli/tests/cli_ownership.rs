//! `microvm run` against a server on fakes: it deletes its own VM whatever happens, and never another.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use microvm_api::CreateVm;
use microvm_api::time::Zone;
use microvm_client::{Client, VmQuery};
use microvm_core::{Engine, Ports, Settings};
use microvm_driver_fake::{
    FakeHooks, FakeHypervisor, FakeStorage, Fault, FrozenClock, MemoryStore, Operation, Script,
};
use microvm_server::{App, AppSettings, BoundServer, serve, socket_path};
use microvm_types::template::Template;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time for one command.
const LIMIT: Duration = Duration::from_secs(20);

struct Server {
    client: Client,
    root: Utf8PathBuf,
    /// Faults of machines.
    machines: Script,
    /// Faults of images.
    storage: Script,
    serving: JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let hypervisor = FakeHypervisor::default();
        let storage = Arc::new(FakeStorage::furnished().unwrap());
        let scripts = (hypervisor.script().clone(), storage.script().clone());
        let ports = Ports {
            connector: Arc::new(hypervisor.connector()),
            hypervisors: microvm_core::Hypervisors::new(Arc::new(hypervisor), Vec::new()),
            store: Arc::new(MemoryStore::default()),
            images: Arc::clone(&storage) as _,
            kernels: Arc::clone(&storage) as _,
            vm_storage: Arc::clone(&storage) as _,
            volumes: Arc::clone(&storage) as _,
            snapshots: storage,
            hooks: Arc::new(FakeHooks::default()),
            clock: Arc::new(FrozenClock::at(0)),
        };
        let template = r#"{"name": "house-default", "image": "debian-python", "boot_timeout_ms": 60000}"#;
        let template: Template = serde_json::from_str(template).unwrap();
        let settings = Settings {
            templates: BTreeMap::from([("house-default".to_owned(), template)]),
            default_template: "house-default".to_owned(),
            ..Settings::default()
        };
        let service = Engine::open(ports, settings).await.unwrap();
        let app_settings = AppSettings { root: root.clone(), zone: Zone::named("UTC").unwrap() };
        let app = App::new(service, app_settings, CancellationToken::new());
        let serving = tokio::spawn(serve(BoundServer::bind(&root).unwrap(), app));
        let client = Client::new(socket_path(&root));
        Self { client, root, machines: scripts.0, storage: scripts.1, serving, _folder: folder }
    }

    async fn names(&self) -> Vec<String> {
        let vms = self.client.list_vms(&VmQuery::default()).await.unwrap().vms;
        vms.into_iter().map(|vm| vm.name.to_string()).collect()
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(arguments).env("MICROVM_ROOT", &self.root).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        finish(self.spawn(arguments)).await
    }
}

async fn finish(child: Child) -> Output {
    tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap()
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_was_there_before_stays_whatever_goes_wrong() {
    let server = Server::start().await;
    let dev = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    server.client.create_vm(&dev).await.unwrap();
    for wrong in [
        &["--image", "typo"][..],
        &["--kernel", "typo"],
        &["--template", "typo"],
        &["--memory", "100TiB"],
        &["--cpus", "100000"],
        &[],
    ] {
        let output = server.run(&[&["run", "--name", "dev"], wrong, &["--", "true"]].concat()).await;
        assert!(output.status.code().is_some_and(|code| code >= 100), "{wrong:?}: {output:?}");
        assert_eq!(server.names().await, ["dev"], "{wrong:?}");
    }
    server.storage.next(Operation::Image, Fault::Fail);
    assert!(!server.run(&["run", "--name", "dev", "--", "true"]).await.status.success());
    assert_eq!(server.names().await, ["dev"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_takes_the_first_characters_of_an_id_and_names_what_is_not_there() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for name in ["dev", "web"] {
        let request = CreateVm { name: Some(name.parse().unwrap()), ..CreateVm::default() };
        ids.push(server.client.create_vm(&request).await.unwrap().id.to_string());
    }
    let names = async |arguments: &[&str]| {
        let output = server.run(&[&["health", "-o", "json"], arguments].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let vms = report["vms"].as_array().unwrap();
        vms.iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]).await, ["dev", "web"]);
    // Both ids are of the same moment: they differ near their end.
    let shared = ids[0].chars().zip(ids[1].chars()).take_while(|(one, other)| one == other).count();
    let prefix = &ids[1][..(shared + 1).max(4)];
    assert_eq!(names(&[prefix]).await, ["web"]);
    assert_eq!(names(&["dev", prefix]).await, ["dev", "web"]);
    let refused = server.run(&["health", "dev", "none"]).await;
    assert!(refused.stdout.is_empty() && refused.status.code() == Some(102), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`none`"), "{refused:?}");
    if shared >= 4 {
        let refused = server.run(&["health", &ids[0][..shared]]).await;
        assert!(!refused.status.success(), "{refused:?}");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("dev") && told.contains("web"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_sizes_is_told_with_its_unit() {
    let server = Server::start().await;
    let refused = server.run(&["create", "--memory", "9GiB"]).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("--memory: 9216 MiB is more than the limit of 8192 MiB"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_creation_leaves_its_own_vm_nowhere_and_others_alone() {
    let server = Server::start().await;
    let dev = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    server.client.create_vm(&dev).await.unwrap();
    server.machines.next(Operation::Launch, Fault::Hang);
    let child = server.spawn(&["run", "--", "true"]);
    // It is on its way: that has no event, but it is in the list.
    let begun = async { while server.names().await.len() < 2 {} };
    tokio::time::timeout(LIMIT, begun).await.unwrap();
    interrupt(&child);
    let output = finish(child).await;
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(server.names().await, ["dev"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_succeeds_is_deleted_unless_it_is_kept() {
    let server = Server::start().await;
    let output = server.run(&["run", "--", "echo", "hello"]).await;
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hello\n"[..]), "{output:?}");
    assert!(server.names().await.is_empty());
    let output = server.run(&["run", "--name", "kept", "--keep", "--", "true"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(server.names().await, ["kept"]);
}
