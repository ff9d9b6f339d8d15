//! Golden snapshots of images, kernels and VMMs that are not there any more.

use std::collections::HashSet;
use std::time::Duration;

use microvm_ports::DocumentKind;
use microvm_types::snapshot::SnapshotPurpose;
use microvm_types::{ErrorKind, OperationName, SnapshotId};

use super::Goldens;
use crate::error::ServiceError;
use crate::kept;

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
        let mut wanted = HashSet::new();
        let set = self.context.shared.templates();
        if let Some(failed) = set.failed.first() {
            // What it would resolve to cannot be told.
            tracing::warn!(%failed, "no old golden snapshot is removed while a template cannot be used");
            return Ok(0);
        }
        for name in set.templates.keys() {
            match self.parts_and_key(name).await {
                Ok((_, key)) => {
                    // Templates that name the same parts share a golden snapshot.
                    wanted.insert(key);
                }
                // Its image or kernel is not here: it has none, or cannot use it now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(ServiceError::NoBranching) => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let now = self.context.shared.ports.clock.now_ms();
        let mut removed = 0;
        for snapshot in self.context.shared.snapshots.all() {
            let SnapshotPurpose::Golden { key } = snapshot.record.purpose.clone() else { continue };
            let id = snapshot.record.id.clone();
            let used_ms =
                self.context.shared.goldens.last_use(&id).unwrap_or(0).max(snapshot.record.created_ms);
            if wanted.contains(&key)
                || now.saturating_sub(used_ms) < UNUSED_MS
                || self.context.shared.snapshots.has_children(&id)
            {
                continue;
            }
            // A choice that leads nowhere would be looked up for ever.
            if self.context.shared.goldens.choice(&key).as_ref() == Some(&id) {
                self.choose(&key, None).await?;
            }
            self.context.shared.goldens.forget(&key);
            let name = snapshot.record.name.to_string();
            kept::remove(&self.context.shared, snapshot, &name, false).await?;
            self.context.shared.ports.store.delete_document(DocumentKind::GoldenUse, id.as_str()).await?;
            removed += 1;
        }
        Ok(removed)
    }
}
