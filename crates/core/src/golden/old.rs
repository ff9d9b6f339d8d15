//! Golden snapshots of images, kernels and VMMs that are not there any more.

use std::collections::HashSet;
use std::time::Duration;

use microvm_ports::DocumentKind;
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::{ErrorKind, OperationName, SnapshotId};

use super::Goldens;
use crate::error::ServiceError;
use crate::kept;
use crate::state::Snapshot;

/// One that no template resolves to goes when it was not used for so long.
const UNUSED_MS: i64 = 30 * 24 * 3_600_000;
/// Uses are noted no more often than this.
const NOTED_EVERY_MS: i64 = 24 * 3_600_000;
/// Rest between two looks.
const REST: Duration = Duration::from_secs(24 * 3_600);

/// Lives as long as the server: looks when it starts, and once a day.
pub(crate) async fn keep_young(goldens: Goldens) {
    loop {
        match goldens.collect_old().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "golden snapshots that nothing uses any more were removed"),
            Err(error) => tracing::warn!(%error, "old golden snapshots could not be looked for"),
        }
        tokio::select! {
            () = goldens.context.shared.ending.cancelled() => return,
            () = goldens.context.shared.ports.clock.sleep(REST) => {}
        }
    }
}

impl Goldens {
    /// Notes that a golden snapshot is used now. Failing at that makes it look older, nothing else.
    pub(super) async fn note_use(&self, id: &SnapshotId) {
        let now = self.context.shared.ports.clock.now_ms();
        let last = self.context.shared.goldens.last_use(id);
        // Also when the clock was set back.
        if last.is_some_and(|last| now.saturating_sub(last).saturating_abs() < NOTED_EVERY_MS) {
            return;
        }
        self.context.shared.goldens.note_use(id, now);
        let store = &self.context.shared.ports.store;
        if let Err(error) = store.put_document(DocumentKind::GoldenUse, id.as_str(), &now.into()).await {
            tracing::warn!(snapshot = %id, %error, "the use of a golden snapshot could not be noted");
        }
    }

    /// Removes golden snapshots that no template resolves to and that nobody has used for 30 days; tells how many.
    ///
    /// # Errors
    /// Whatever keeps it from telling what templates resolve to: nothing is removed then.
    pub async fn collect_old(&self) -> Result<usize, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_UPDATE_GOLDEN)?;
        let old = self.unneeded(false).await?;
        let removed = old.len();
        for snapshot in old {
            self.discard(snapshot).await?;
        }
        Ok(removed)
    }

    /// Golden snapshots that no template resolves to and that nobody has used for 30 days, or `all`; never one that others build on.
    pub(crate) async fn unneeded(&self, all: bool) -> Result<Vec<Snapshot>, ServiceError> {
        let Some(wanted) = (if all { Some(HashSet::new()) } else { self.wanted().await? }) else {
            return Ok(Vec::new());
        };
        let shared = &self.context.shared;
        let now = shared.ports.clock.now_ms();
        let mut found = shared.snapshots.all();
        found.retain(|snapshot| {
            let SnapshotPurpose::Golden { key } = &snapshot.record.purpose else { return false };
            let id = &snapshot.record.id;
            let used_ms = shared.goldens.last_use(id).unwrap_or(0).max(snapshot.record.created_ms);
            let old = !wanted.contains(key) && now.saturating_sub(used_ms) >= UNUSED_MS;
            (all || old) && !shared.snapshots.has_children(id)
        });
        Ok(found)
    }

    /// Keys of what templates resolve to; `None`: that cannot be told.
    async fn wanted(&self) -> Result<Option<HashSet<String>>, ServiceError> {
        let mut wanted = HashSet::new();
        let set = self.context.shared.templates();
        if let Some(failed) = set.failed.first() {
            // What it would resolve to cannot be told.
            tracing::warn!(%failed, "no old golden snapshot is removed while a template cannot be used");
            return Ok(None);
        }
        for name in set.templates.keys() {
            match self.parts_and_key(name).await {
                Ok((_, key)) => {
                    // Templates that name the same parts share a golden snapshot.
                    wanted.insert(key);
                }
                // Its image or kernel is not here: it has none, or cannot use it now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(ServiceError::NoBranching) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(wanted))
    }

    /// Removes a golden snapshot: the next VM of its template boots, and leaves a new one.
    pub(crate) async fn discard(&self, snapshot: Snapshot) -> Result<(), ServiceError> {
        let SnapshotPurpose::Golden { key } = snapshot.record.purpose.clone() else { return Ok(()) };
        let id = snapshot.record.id.clone();
        let shared = &self.context.shared;
        // A choice that leads nowhere would be looked up for ever.
        if shared.goldens.choice(&key).as_ref() == Some(&id) {
            self.choose(&key, None).await?;
        }
        shared.goldens.forget(&key);
        let name = snapshot.record.name.to_string();
        kept::remove(shared, snapshot, &name, false).await?;
        Ok(shared.ports.store.delete_document(DocumentKind::GoldenUse, id.as_str()).await?)
    }
}
