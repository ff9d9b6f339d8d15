//! Rows in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use microvm_ports::{DocumentKind, StateError, StateStore, StoredDocuments, StoredVms};
use microvm_types::VmId;
use microvm_types::vm::VmRecord;

use crate::script::{Operation, Script, Verdict};

/// A state store in memory; clones share their rows, so a "restarted server" opens a clone.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    rows: Arc<Mutex<BTreeMap<VmId, VmRecord>>>,
    documents: Arc<Mutex<BTreeMap<(DocumentKind, String), serde_json::Value>>>,
    /// Rows that cannot be read any more, with the reason.
    damaged: Arc<Mutex<Vec<(String, String)>>>,
    script: Script,
}

impl MemoryStore {
    /// Makes the row of a VM unreadable, as a damaged disk does.
    pub fn damage_vm(&self, id: &VmId) {
        self.rows().remove(id);
        let reason = "its checksum does not fit its content".to_owned();
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).push((id.to_string(), reason));
    }

    /// Planned faults.
    #[must_use]
    pub const fn script(&self) -> &Script {
        &self.script
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<VmId, VmRecord>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn documents(&self) -> MutexGuard<'_, BTreeMap<(DocumentKind, String), serde_json::Value>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, operation: Operation, action: &'static str) -> Result<Verdict, StateError> {
        match self.script.ask(operation).await {
            Verdict::Fail => Err(StateError::Database { action, source: "a fault was planned here".into() }),
            go => Ok(go),
        }
    }
}

fn name_is_free(rows: &BTreeMap<VmId, VmRecord>, record: &VmRecord) -> Result<(), StateError> {
    let clash =
        |row: &VmRecord| row.id != record.id && row.tenant == record.tenant && row.name == record.name;
    if rows.values().any(clash) { Err(StateError::NameTaken(record.name.clone())) } else { Ok(()) }
}

#[async_trait]
impl StateStore for MemoryStore {
    async fn insert_vm(&self, record: &VmRecord) -> Result<(), StateError> {
        let verdict = self.ask(Operation::Insert, "adding a VM").await?;
        {
            let mut rows = self.rows();
            name_is_free(&rows, record)?;
            rows.insert(record.id.clone(), record.clone());
        }
        verdict.finish().await;
        Ok(())
    }

    async fn update_vm(&self, record: &VmRecord) -> Result<(), StateError> {
        let verdict = self.ask(Operation::Update, "updating a VM").await?;
        {
            let mut rows = self.rows();
            if !rows.contains_key(&record.id) {
                return Err(StateError::Unknown(record.id.clone()));
            }
            name_is_free(&rows, record)?;
            rows.insert(record.id.clone(), record.clone());
        }
        verdict.finish().await;
        Ok(())
    }

    async fn delete_vm(&self, id: &VmId) -> Result<(), StateError> {
        let verdict = self.ask(Operation::Delete, "removing a VM").await?;
        self.rows().remove(id);
        verdict.finish().await;
        Ok(())
    }

    async fn vms(&self) -> Result<StoredVms, StateError> {
        self.ask(Operation::List, "reading all VMs").await?.finish().await;
        let mut all: Vec<VmRecord> = self.rows().values().cloned().collect();
        all.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        let unreadable = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(StoredVms { records: all, unreadable })
    }

    async fn put_document(
        &self,
        kind: DocumentKind,
        key: &str,
        document: &serde_json::Value,
    ) -> Result<(), StateError> {
        let verdict = self.ask(Operation::Update, "keeping a document").await?;
        self.documents().insert((kind, key.to_owned()), document.clone());
        verdict.finish().await;
        Ok(())
    }

    async fn delete_document(&self, kind: DocumentKind, key: &str) -> Result<(), StateError> {
        let verdict = self.ask(Operation::Delete, "removing a document").await?;
        self.documents().remove(&(kind, key.to_owned()));
        verdict.finish().await;
        Ok(())
    }

    async fn documents(&self, kind: DocumentKind) -> Result<StoredDocuments, StateError> {
        self.ask(Operation::List, "reading documents").await?.finish().await;
        let all = self.documents();
        let of_kind = all.iter().filter(|((found, _), _)| *found == kind);
        let documents = of_kind.map(|((_, key), document)| (key.clone(), document.clone())).collect();
        Ok(StoredDocuments { documents, unreadable: Vec::new() })
    }
}
