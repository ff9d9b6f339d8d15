//! The state store suite on SQLite.
#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach helpers of integration tests.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_conformance::state_store::{self, StateStoreHarness};
use microvm_driver_database::SqliteStore;
use microvm_ports::StateStore;

struct Files {
    directory: tempfile::TempDir,
    newest: Mutex<u32>,
}

impl Files {
    fn path(&self, number: u32) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.directory.path().join(format!("{number}.db"))).unwrap()
    }
}

#[async_trait]
impl StateStoreHarness for Files {
    async fn empty(&self) -> Arc<dyn StateStore> {
        let number = {
            let mut newest = self.newest.lock().unwrap();
            *newest += 1;
            *newest
        };
        Arc::new(SqliteStore::open(&self.path(number)).await.unwrap())
    }

    async fn reopened(&self) -> Option<Arc<dyn StateStore>> {
        let number = *self.newest.lock().unwrap();
        Some(Arc::new(SqliteStore::open(&self.path(number)).await.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conformance_state_store_on_sqlite() {
    let files = Files { directory: tempfile::tempdir().unwrap(), newest: Mutex::new(0) };
    state_store::run(&files).await;
}
