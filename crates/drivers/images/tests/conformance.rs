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
use microvm_conformance::images::{ImageHarness, run};
use microvm_ports::ImageStore;

/// Every question gets a store of its own.
#[derive(Default)]
struct Harness(Mutex<Vec<Home>>);

#[async_trait]
impl ImageHarness for Harness {
    async fn images(&self) -> Arc<dyn ImageStore> {
        let home = Home::new();
        let images = Arc::new(home.storage.clone());
        self.0.lock().unwrap().push(home);
        images
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
