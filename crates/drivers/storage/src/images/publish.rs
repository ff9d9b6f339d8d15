//! Writes a collected image, and puts it in its place.

use std::sync::PoisonError;

use microvm_ports::StorageError;
use microvm_ports::storage::{ImageConfig, ImageInfo};

use super::{ImageManifest, MANIFEST, ROOT_FILE, STAMP};
use crate::base::files::{make_directory, remove_all, sync_directory};
use crate::base::manifest;
use crate::base::stamp::verify_now;
use crate::base::workspace::Workspace;
use crate::erofs;
use crate::source::builder::Builder;
use crate::store::Inner;

impl Inner {
    /// Turns what was collected into an image and points a name to it.
    pub(super) fn publish_image(
        &self,
        name: &str,
        source: String,
        config: &ImageConfig,
        builder: Builder,
        workspace: &Workspace,
    ) -> Result<ImageInfo, StorageError> {
        let Builder { tree, spool, cancel, progress, config: mut merged, .. } = builder;
        merge(&mut merged, config);
        let new = workspace.join("image");
        make_directory(&new, 0o711)?;
        let root = new.join(ROOT_FILE);
        progress.step("writing the file system");
        let written = erofs::write(&tree, spool, &root, &cancel, &|done, total| {
            progress.advance("writing the file system", done, Some(total))
        })?;
        drop(tree);
        std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o444))
            .map_err(crate::base::error::io_error("setting the mode of", &root))?;
        let record = ImageManifest {
            sha256: written.sha256.clone(),
            size: written.size,
            created_ms: self.clock.now_ms(),
            source,
            config: merged,
        };
        manifest::write(&new.join(MANIFEST), &record)?;
        self.verified.remember(&root, &written.sha256, &new.join(STAMP));
        sync_directory(&new)?;
        cancel.check()?;
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let target = self.image_path(&written.sha256);
        self.put_image(&new, &target, &written, workspace)?;
        self.write_name(workspace, name, &written.sha256)?;
        let names = self.all_names()?.remove(&written.sha256).unwrap_or_default();
        self.image_info(&written.sha256, names)
    }

    /// The same content may be there already, made earlier or by another process a moment ago. Then the file system stays
    /// (VMs may have it open) and only what is said about it is replaced. A damaged one gives way.
    fn put_image(
        &self,
        new: &camino::Utf8Path,
        target: &camino::Utf8Path,
        written: &erofs::Written,
        workspace: &Workspace,
    ) -> Result<(), StorageError> {
        for attempt in 0.. {
            match std::fs::rename(new, target) {
                Ok(()) => return sync_directory(&self.directories.images),
                Err(error) if attempt == 0 && matches!(error.raw_os_error(), Some(17 | 39)) => {}
                Err(error) => return Err(crate::base::error::failed("renaming to", target, error)),
            }
            if verify_now(&target.join(ROOT_FILE), "the image", &written.sha256, written.size).is_ok() {
                crate::base::files::rename_durably(&new.join(MANIFEST), &target.join(MANIFEST))?;
                return remove_all(new);
            }
            let old = workspace.join("damaged");
            std::fs::rename(target, &old).map_err(crate::base::error::io_error("removing", target))?;
        }
        Ok(())
    }
}

/// What the caller says goes over what the source says; empty means unsaid.
fn merge(base: &mut ImageConfig, over: &ImageConfig) {
    base.environment.extend(over.environment.clone());
    for (base, over) in [(&mut base.user, &over.user), (&mut base.working_directory, &over.working_directory)]
    {
        if !over.is_empty() {
            base.clone_from(over);
        }
    }
    for (base, over) in [(&mut base.entrypoint, &over.entrypoint), (&mut base.command, &over.command)] {
        if !over.is_empty() {
            base.clone_from(over);
        }
    }
}
