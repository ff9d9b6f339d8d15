//! Downloads of pieces: hashed while they come, taken up again where they broke off.

use std::io::SeekFrom;

use camino::Utf8Path;
use microvm_durable::error::io_error;
use microvm_durable::files::hex;
use microvm_ports::StorageError;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::client::{Registry, of_request};
use super::patience::{Failed, Tries};
use crate::source::oci::Descriptor;

/// A piece that is being downloaded.
struct Piece<'a> {
    wanted: &'a Descriptor,
    path: &'a Utf8Path,
    file: File,
    hash: Sha256,
    /// Bytes that are in the file and the hash.
    have: u64,
}

/// Downloads a piece to `path`; `progress` hears how much of it there is.
pub(super) async fn download(
    registry: &Registry,
    wanted: &Descriptor,
    path: &Utf8Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), StorageError> {
    let file = File::create(path).await.map_err(io_error("creating", path))?;
    let mut piece = Piece { wanted, path, file, hash: Sha256::new(), have: 0 };
    let (mut tries, mut counted) = (Tries::new(registry.patience), 0);
    while let Err(failed) = piece.take(registry, progress).await {
        if piece.have >= counted + registry.patience.progress {
            counted = piece.have;
            tries.reset();
        }
        tries.rest(failed).await?;
    }
    piece.file.flush().await.map_err(io_error("writing", path))?;
    let found = format!("sha256:{}", hex(&piece.hash.finalize()));
    if found != wanted.digest {
        return Err(StorageError::Registry(format!(
            "the piece {} has another content: its digest is {found}",
            wanted.digest
        )));
    }
    Ok(())
}

impl Piece<'_> {
    /// One try for what is missing.
    async fn take(
        &mut self,
        registry: &Registry,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Failed> {
        if self.have > 0 && self.have == self.wanted.size {
            // The last try broke off behind the last byte.
            return Ok(());
        }
        let mut response = registry.get(&format!("blobs/{}", self.wanted.digest), None, self.have).await?;
        if !self.goes_on(&response) {
            self.begin_again().await?;
        }
        let missing = self.wanted.size - self.have;
        if response.content_length().is_some_and(|length| length > missing) {
            return Err(self.too_long());
        }
        let patience = registry.patience;
        let (mut end, mut within) = (Instant::now() + patience.window, 0);
        loop {
            let slow = || {
                Failed::again(format!(
                    "the piece {} came with less than {} bytes in {:?}",
                    self.wanted.digest, patience.least, patience.window
                ))
            };
            let part = timeout_at(end, response.chunk()).await.map_err(|_| slow())?;
            let Some(part) = part.map_err(|error| self.broken(&of_request(&error)))? else { break };
            within += part.len() as u64;
            if within >= patience.least {
                (end, within) = (Instant::now() + patience.window, 0);
            }
            if part.len() as u64 > self.wanted.size - self.have {
                return Err(self.too_long());
            }
            let written = self.file.write_all(&part).await;
            written.map_err(|error| Failed::Final(io_error("writing", self.path)(error)))?;
            self.hash.update(&part);
            self.have += part.len() as u64;
            progress(self.have);
        }
        if self.have < self.wanted.size {
            return Err(Failed::again(format!(
                "the piece {} ended after {} of {} bytes",
                self.wanted.digest, self.have, self.wanted.size
            )));
        }
        Ok(())
    }

    /// True if the answer begins where what there is ends. Registries need not know ranges: they answer with all of it.
    fn goes_on(&self, response: &Response) -> bool {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return self.have == 0;
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        range.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.have)))
    }

    async fn begin_again(&mut self) -> Result<(), Failed> {
        let failed = |error| Failed::Final(io_error("writing", self.path)(error));
        self.file.flush().await.map_err(failed)?;
        self.file.set_len(0).await.map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(failed)?;
        (self.hash, self.have) = (Sha256::new(), 0);
        Ok(())
    }

    fn too_long(&self) -> Failed {
        let Descriptor { digest, size, .. } = self.wanted;
        Failed::finally(format!("the piece {digest} is longer than the {size} bytes the manifest says"))
    }

    fn broken(&self, failed: &Failed) -> Failed {
        let reason = match failed {
            Failed::Again(reason, _) => reason.clone(),
            Failed::Final(error) => error.to_string(),
        };
        Failed::again(format!("the download of {} broke off: {reason}", self.wanted.digest))
    }
}
