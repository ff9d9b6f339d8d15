//! The proof of a snapshot: a VM that comes up from it and answers.

use std::collections::BTreeMap;

use microvm_types::SnapshotId;
use microvm_types::template::Template;
use microvm_types::vm::{Limits, Origin};

use super::golden::GOLDEN_LABEL;
use super::restore::{RestoreRequest, record_of};
use crate::error::ServiceError;
use crate::service::VmService;

/// A VM that proves a snapshot is deleted when nobody has used it for so long: its server died.
const IDLE_SECONDS: u64 = 300;

impl VmService {
    /// Makes a VM from a snapshot, has it run a command, and deletes it. It has no variables, commands or hooks of
    /// anybody's.
    ///
    /// # Errors
    /// Whatever keeps it from coming up or answering; nothing of it is left.
    pub(super) async fn prove(&self, snapshot: &SnapshotId) -> Result<(), ServiceError> {
        let snapshot = self.shared.snapshots.find(snapshot.as_str())?;
        let source = self.shared.ports.snapshots.snapshot_source(&snapshot.record.id, 1).await?;
        let request = RestoreRequest {
            count: 1,
            limits: Limits { idle_seconds: Some(IDLE_SECONDS), ephemeral: true, ..Limits::default() },
            ..RestoreRequest::default()
        };
        let mut from = record_of(&snapshot, &request);
        from.labels = BTreeMap::from([(GOLDEN_LABEL.to_owned(), "proving".to_owned())]);
        from.template = Template {
            environment: BTreeMap::new(),
            start_commands: Vec::new(),
            labels: BTreeMap::new(),
            hooks: Vec::new(),
            ..from.template
        };
        let origin = Origin::Snapshot { snapshot: snapshot.record.id.clone() };
        let record = self.child_record(self.shared.ports.new_vm_id(), from, None, origin)?;
        let id = record.id.clone();
        self.bring_up_children(&source, vec![record], Vec::new()).await?;
        let answered = self.probe(&id).await;
        self.delete_child(&id).await;
        answered
    }
}
