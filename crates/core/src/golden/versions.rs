//! Versions of golden snapshots.

use microvm_ports::DocumentKind;
use microvm_types::{OperationName, SnapshotId};

use super::Goldens;
use crate::creation::Parts;
use crate::error::ServiceError;
use crate::kept;
use crate::launch::shares::check_whole;
use crate::state::Snapshot;

/// Versions kept of one template, the current one included.
const VERSIONS_KEPT: usize = 3;

/// One version of what a template boots to.
#[derive(Debug, Clone)]
pub struct GoldenVersion {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// True if new VMs are forked from it.
    pub current: bool,
}

impl Goldens {
    /// The golden snapshots of a template as it is now (its image, kernel and sizes), oldest first.
    ///
    /// # Errors
    /// Unknown templates, images and kernels; hypervisors without snapshots.
    pub async fn versions(&self, template: &str) -> Result<Vec<GoldenVersion>, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_GOLDEN)?;
        let (_, key) = self.parts_and_key(template).await?;
        Ok(self.versions_of(&key))
    }

    fn versions_of(&self, key: &str) -> Vec<GoldenVersion> {
        let current = self.current(key).map(|snapshot| snapshot.record.id);
        let all = self.context.shared.snapshots.goldens(key);
        all.into_iter()
            .map(|snapshot| {
                let current = current.as_ref() == Some(&snapshot.record.id);
                GoldenVersion { snapshot, current }
            })
            .collect()
    }

    /// Boots the template anew and forks from that from now on. Older versions stay, up to three in all.
    ///
    /// # Errors
    /// As for a VM that does not come up; the current version stays then.
    pub async fn update(&self, template: &str) -> Result<GoldenVersion, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_UPDATE_GOLDEN)?;
        let _making = self.context.shared.making.read().await;
        let (parts, key) = self.parts_and_key(template).await?;
        let template = &parts.template;
        check_whole(template)?;
        if !template.extra_disks.is_empty() || !template.volumes.is_empty() {
            let reason = format!("`{}` has disks of yours: VMs of it always boot", template.name);
            return Err(ServiceError::Invalid { field: "template", reason });
        }
        let id = self.make(&key, &parts).await?;
        // The newest is current without a choice; an older choice would hide what was just made.
        self.choose(&key, None).await?;
        let mut versions = self.context.shared.snapshots.goldens(&key);
        while versions.len() > VERSIONS_KEPT {
            let oldest = versions.remove(0);
            // VMs that stem from it go on; snapshots of them build on it and keep it.
            if !self.context.shared.snapshots.has_children(&oldest.record.id) {
                let name = oldest.record.name.to_string();
                kept::remove(&self.context.shared, oldest, &name, false).await?;
            }
        }
        Ok(GoldenVersion { snapshot: self.context.shared.snapshots.by_id(&id)?, current: true })
    }

    /// Forks from the version before the current one from now on.
    ///
    /// # Errors
    /// If there is none.
    pub async fn rollback(&self, template: &str) -> Result<GoldenVersion, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_ROLL_BACK_GOLDEN)?;
        let (_, key) = self.parts_and_key(template).await?;
        let versions = self.versions_of(&key);
        let at = versions.iter().position(|version| version.current);
        let before = at.and_then(|at| at.checked_sub(1)).and_then(|before| versions.get(before));
        let Some(before) = before else {
            return Err(ServiceError::NoOlderGolden { template: template.to_owned() });
        };
        self.choose(&key, Some(before.snapshot.record.id.clone())).await?;
        Ok(GoldenVersion { current: true, ..before.clone() })
    }

    pub(super) async fn choose(&self, key: &str, id: Option<SnapshotId>) -> Result<(), ServiceError> {
        let store = &self.context.shared.ports.store;
        match &id {
            Some(id) => store.put_document(DocumentKind::GoldenChoice, key, &id.as_str().into()).await?,
            None => store.delete_document(DocumentKind::GoldenChoice, key).await?,
        }
        self.context.shared.goldens.choose(key, id);
        self.context.shared.goldens.forget(key);
        Ok(())
    }

    pub(super) async fn parts_and_key(&self, name: &str) -> Result<(Parts, String), ServiceError> {
        let mut template = self.context.shared.template(Some(name))?;
        let ports = &self.context.shared.ports;
        ports.hypervisors.settle(&mut template)?;
        let (image, kernel) =
            tokio::try_join!(ports.images.image(&template.image), ports.kernels.kernel(&template.kernel))?;
        let key = self.key(&template, &image, &kernel).await?.ok_or(ServiceError::NoBranching)?;
        Ok((Parts { template, image, kernel, held: None }, key))
    }
}
