//! Versions of golden snapshots.

use microvm_ports::DocumentKind;
use microvm_types::SnapshotId;
use microvm_types::template::Template;

use super::index::Snapshot;
use crate::error::ServiceError;
use crate::service::VmService;
use crate::shares::check_whole;

/// Versions kept of one template, the current one included.
const VERSIONS_KEPT: usize = 3;

/// One version of what a template boots to.
#[derive(Debug, Clone)]
pub struct GoldenVersion {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Whether new VMs are forked from it.
    pub current: bool,
}

impl VmService {
    /// Takes up what the last server was told to go back to.
    pub(crate) async fn load_golden_choices(&self) -> Result<(), ServiceError> {
        let stored = self.shared.ports.store.documents(DocumentKind::GoldenChoice).await?;
        for (key, document) in stored.documents {
            match serde_json::from_value::<SnapshotId>(document) {
                Ok(id) => self.shared.goldens.choose(&key, Some(id)),
                Err(error) => tracing::warn!(%error, "a stored choice of a golden snapshot cannot be read"),
            }
        }
        Ok(())
    }

    /// The golden snapshots of a template as it is now (its image, kernel and sizes), oldest first.
    ///
    /// # Errors
    /// Unknown templates, images and kernels; hypervisors without snapshots.
    pub async fn golden_versions(&self, template: &str) -> Result<Vec<GoldenVersion>, ServiceError> {
        let (_, key) = self.template_and_key(template).await?;
        Ok(self.versions(&key))
    }

    fn versions(&self, key: &str) -> Vec<GoldenVersion> {
        let current = self.current_golden(key).map(|snapshot| snapshot.record.id);
        let all = self.shared.snapshots.goldens(key);
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
    pub async fn update_golden(&self, template: &str) -> Result<GoldenVersion, ServiceError> {
        let (template, key) = self.template_and_key(template).await?;
        check_whole(&template)?;
        if !template.extra_disks.is_empty() {
            let reason = format!("`{}` has disks of yours: VMs of it always boot", template.name);
            return Err(ServiceError::Invalid { field: "template", reason });
        }
        let id = self.make_golden(&key, &template).await?;
        self.choose(&key, None).await?;
        let mut versions = self.shared.snapshots.goldens(&key);
        while versions.len() > VERSIONS_KEPT {
            let oldest = versions.remove(0);
            // VMs that stem from it go on; snapshots of them build on it and keep it.
            if !self.shared.snapshots.has_children(&oldest.record.id) {
                self.remove_snapshot(oldest.record.id.as_str(), false).await?;
            }
        }
        Ok(GoldenVersion { snapshot: self.shared.snapshots.find(id.as_str())?, current: true })
    }

    /// Forks from the version before the current one from now on.
    ///
    /// # Errors
    /// If there is none.
    pub async fn rollback_golden(&self, template: &str) -> Result<GoldenVersion, ServiceError> {
        let (_, key) = self.template_and_key(template).await?;
        let versions = self.versions(&key);
        let at = versions.iter().position(|version| version.current);
        let before = at.and_then(|at| at.checked_sub(1)).and_then(|before| versions.get(before));
        let Some(before) = before else {
            return Err(ServiceError::NoOlderGolden { template: template.to_owned() });
        };
        self.choose(&key, Some(before.snapshot.record.id.clone())).await?;
        Ok(GoldenVersion { current: true, ..before.clone() })
    }

    pub(super) async fn choose(&self, key: &str, id: Option<SnapshotId>) -> Result<(), ServiceError> {
        let store = &self.shared.ports.store;
        match &id {
            Some(id) => store.put_document(DocumentKind::GoldenChoice, key, &id.as_str().into()).await?,
            None => store.delete_document(DocumentKind::GoldenChoice, key).await?,
        }
        self.shared.goldens.choose(key, id);
        self.shared.goldens.forget(key);
        Ok(())
    }

    pub(super) async fn template_and_key(&self, name: &str) -> Result<(Template, String), ServiceError> {
        let template = self.template(name)?;
        let ports = &self.shared.ports;
        let (image, kernel) =
            tokio::try_join!(ports.images.image(&template.image), ports.kernels.kernel(&template.kernel))?;
        let key = self.golden_key(&template, &image, &kernel).await?.ok_or(ServiceError::NoBranching)?;
        Ok((template, key))
    }
}
