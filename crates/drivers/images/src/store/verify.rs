//! Walks over everything that is stored and names each damage.

use microvm_durable::cancel::Cancel;
use microvm_ports::{Progress, StorageError};

use super::Inner;

impl Inner {
    /// Every finding as a sentence.
    pub(super) fn verify_everything(
        &self,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Vec<String>, StorageError> {
        let mut findings = Vec::new();
        let digests = self.images.digests()?;
        let kernels = self.kernels.kernel_names()?;
        let total = Some((digests.len() + kernels.len()) as u64);
        let mut done = 0;
        for name in self.images.names.files()? {
            match self.images.names.read(&name) {
                Ok(Some(sha256)) if !digests.contains(&sha256) => findings
                    .push(format!("the image name `{name}` points to sha256:{sha256}, which is missing")),
                Ok(_) => {}
                Err(error) => findings.push(error.to_string()),
            }
        }
        let mut names = self.images.names.by_digest()?;
        for sha256 in digests {
            cancel.check()?;
            let own = names.remove(&sha256).unwrap_or_default();
            progress.advance("verifying", done, total);
            if let Err(error) = self.images.verify_image(&sha256, &own) {
                findings.push(error.to_string());
                // So that its next use finds the damage as well.
                self.images.forget_verified(&sha256)?;
            }
            done += 1;
        }
        for kernel in kernels {
            cancel.check()?;
            progress.advance("verifying", done, total);
            if let Err(error) = self.kernels.verify_kernel(&kernel) {
                findings.push(error.to_string());
            }
            done += 1;
        }
        progress.advance("verifying", done, total);
        Ok(findings)
    }
}
