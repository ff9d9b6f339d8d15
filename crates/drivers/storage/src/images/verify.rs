//! Walks over everything that is stored and names each damage.

use microvm_durable::cancel::Cancel;
use microvm_durable::files::{names_in, remove_all};
use microvm_durable::stamp::verify_now;
use microvm_ports::{Progress, StorageError};

use super::read::describe;
use super::{ROOT_FILE, STAMP};
use crate::store::Inner;

impl Inner {
    /// Every finding as a sentence.
    pub(super) fn verify_everything(
        &self,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Vec<String>, StorageError> {
        let mut findings = Vec::new();
        let digests = self.digests()?;
        let kernels = self.kernel_names()?;
        let total = Some((digests.len() + kernels.len()) as u64);
        let mut done = 0;
        for name in names_in(&self.directories.image_names)? {
            match self.read_name(&name) {
                Ok(Some(sha256)) if !digests.contains(&sha256) => findings
                    .push(format!("the image name `{name}` points to sha256:{sha256}, which is missing")),
                Ok(_) => {}
                Err(error) => findings.push(error.to_string()),
            }
        }
        let mut names = self.all_names()?;
        for sha256 in digests {
            cancel.check()?;
            let own = names.remove(&sha256).unwrap_or_default();
            progress.advance("verifying", done, total);
            if let Err(error) = self.verify_image(&sha256, &own) {
                findings.push(error.to_string());
                // The next use looks again as well.
                remove_all(&self.image_path(&sha256).join(STAMP))?;
            }
            done += 1;
        }
        for kernel in kernels {
            cancel.check()?;
            progress.advance("verifying", done, total);
            if let Err(error) = self.verify_kernel(&kernel) {
                findings.push(error.to_string());
            }
            done += 1;
        }
        progress.advance("verifying", done, total);
        findings.extend(self.verify_snapshots(cancel, progress)?);
        Ok(findings)
    }

    fn verify_image(&self, sha256: &str, names: &[String]) -> Result<(), StorageError> {
        let what = describe(sha256, names);
        let manifest = self.image_manifest(sha256, &what)?;
        verify_now(&self.image_path(sha256).join(ROOT_FILE), &what, &manifest.sha256, manifest.size)
    }
}
