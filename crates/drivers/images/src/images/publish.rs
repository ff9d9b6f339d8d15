//! Writes a collected image, and puts it in its place.

use std::sync::PoisonError;

use camino::Utf8Path;
use microvm_durable::files::{make_directory, remove_all, rename_durably, sync_directory};
use microvm_durable::manifest;
use microvm_durable::stamp::verify_now;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::{ImageConfig, ImageInfo};

use super::ImageFiles;
use super::identity::identity;
use super::{ImageManifest, MANIFEST, ROOT_FILE, STAMP};
use crate::erofs;
use crate::source::builder::Builder;

impl ImageFiles {
    /// Turns what was collected into an image and points a name to it.
    pub(crate) fn publish_image(
        &self,
        name: &str,
        source: String,
        config: &ImageConfig,
        mut builder: Builder,
        workspace: &Workspace,
    ) -> Result<ImageInfo, StorageError> {
        builder.translate_acls(&source)?;
        let Builder { tree, spool, cancel, progress, config: found, .. } = builder;
        let new = workspace.join("image");
        make_directory(&new, 0o711)?;
        let root = new.join(ROOT_FILE);
        progress.step("writing the file system");
        let written = erofs::write(&tree, spool, &root, &cancel, &|done, total| {
            progress.advance("writing the file system", done, Some(total))
        })?;
        // Its memory is counted against that of all builds.
        drop(tree);
        std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o444))
            .map_err(microvm_durable::error::io_error("setting the mode of", &root))?;
        let record = ImageManifest {
            sha256: written.sha256.clone(),
            size: written.size,
            created_ms: self.clock.now_ms(),
            source,
            config: found.with(config),
        };
        let digest = identity(&record.sha256, &record.config);
        manifest::write(&new.join(MANIFEST), &record)?;
        self.verified.remember(&root, &written.sha256, &new.join(STAMP));
        sync_directory(&new)?;
        // The last moment: from here on others see it.
        cancel.check()?;
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        self.share_file(&new, &digest, &written, workspace)?;
        self.put_image(&new, &self.image_path(&digest), &written, workspace)?;
        // Last: a name never points to an image that is not there.
        self.names.write(workspace, name, &digest)?;
        let names = self.names.by_digest()?.remove(&digest).unwrap_or_default();
        self.image_info(&digest, names)
    }

    /// Makes one file of the new file system and an equal one of another image: of the other's, which VMs may have open, or,
    /// where that is damaged, of the new one. A file system without hard links holds two files.
    fn share_file(
        &self,
        new: &Utf8Path,
        digest: &str,
        written: &erofs::Written,
        workspace: &Workspace,
    ) -> Result<(), StorageError> {
        let own = new.join(ROOT_FILE);
        for other in self.digests_with_files(&written.sha256)? {
            if other == digest {
                continue;
            }
            let other = self.image_path(&other);
            let theirs = other.join(ROOT_FILE);
            let good = verify_now(&theirs, "the image", &written.sha256, written.size).is_ok();
            let (from, to) = if good { (&theirs, &own) } else { (&own, &theirs) };
            let link = workspace.join("link");
            if let Err(error) = std::fs::hard_link(from, &link) {
                tracing::debug!(%error, image = %theirs, "a file system is stored twice");
                continue;
            }
            rename_durably(&link, to)?;
            // A new link changes the time by which a verified file is known.
            self.verified.remember(&theirs, &written.sha256, &other.join(STAMP));
            self.verified.remember(&own, &written.sha256, &new.join(STAMP));
            if good {
                break;
            }
        }
        Ok(())
    }

    /// The same image may be there already, made earlier or by another process a moment ago. Then the file system stays
    /// (VMs may have it open) and only what is said about its source is replaced. A damaged one gives way.
    fn put_image(
        &self,
        new: &Utf8Path,
        target: &Utf8Path,
        written: &erofs::Written,
        workspace: &Workspace,
    ) -> Result<(), StorageError> {
        for attempt in 0.. {
            match std::fs::rename(new, target) {
                Ok(()) => return sync_directory(&self.directory),
                // EEXIST or ENOTEMPTY: there is one already.
                Err(error) if attempt == 0 && matches!(error.raw_os_error(), Some(17 | 39)) => {}
                Err(error) => return Err(microvm_durable::error::failed("renaming to", target, error)),
            }
            if verify_now(&target.join(ROOT_FILE), "the image", &written.sha256, written.size).is_ok() {
                rename_durably(&new.join(MANIFEST), &target.join(MANIFEST))?;
                return remove_all(new);
            }
            let old = workspace.join("damaged");
            std::fs::rename(target, &old).map_err(microvm_durable::error::io_error("removing", target))?;
        }
        Ok(())
    }
}
