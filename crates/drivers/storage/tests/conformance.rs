//! The port's own suite on this driver.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say on standard output what they skip"
)]

mod common;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use camino::Utf8PathBuf;
use common::Home;
use microvm_ports::conformance::storage::{StorageHarness, run};
use microvm_ports::{ImageStore, VmStorage};

/// Every question gets a store of its own.
#[derive(Default)]
struct Harness(Mutex<Vec<Home>>);

impl Harness {
    fn home(&self) -> microvm_driver_storage::Storage {
        let home = Home::new();
        let storage = home.storage.clone();
        self.0.lock().unwrap().push(home);
        storage
    }
}

#[async_trait]
impl StorageHarness for Harness {
    async fn vms(&self) -> Arc<dyn VmStorage> {
        Arc::new(self.home())
    }

    async fn images(&self) -> Arc<dyn ImageStore> {
        Arc::new(self.home())
    }

    async fn folder(&self, variant: u32) -> Utf8PathBuf {
        let home = Home::new();
        let folder = home.path("folder");
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("file");
        std::fs::write(&file, format!("variant {variant}")).unwrap();
        // Times are part of an image: the same content must have the same times.
        for path in [file.as_std_path(), folder.as_std_path()] {
            std::fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        self.0.lock().unwrap().push(home);
        folder
    }
}

#[tokio::test]
async fn the_driver_keeps_the_promises_of_its_ports() {
    run(&Harness::default()).await;
}
