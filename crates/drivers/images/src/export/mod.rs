//! Files of images for other programs: an image as one archive that is both an OCI image layout and what `docker save` writes, or
//! a plain tar.
//!
//! ```text
//! oci-layout, index.json ─▶ manifest ─▶ configuration, layer     as skopeo, podman and newer docker read it
//! manifest.json ──────────────────────▶ configuration, layer     as every docker reads it
//! ```
//!
//! The layer of an image is written twice: once to be hashed, since its name is its digest, and once to whoever wants it. Equal
//! images give equal archives.

pub(crate) mod changes;
mod documents;
mod entry;
mod tree;

use std::io::{self, Write};

use microvm_durable::cancel::Cancel;
use microvm_durable::files::{hex, sha256};
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;
use microvm_ports::storage::ImageInfo;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use self::documents::Documents;
use self::entry::NewEntry;
use self::tree::WriteError;
use crate::erofs::{Attributes, SpoolReader, Tree};
use crate::source::builder::Builder;
use crate::source::tar_image::Whiteouts;

/// Files that are ready to be written.
pub(crate) struct Export {
    what: String,
    tree: Tree,
    contents: SpoolReader,
    form: Form,
    /// Holds contents that are not those of an image.
    _workspace: Workspace,
}

/// Form of an archive.
enum Form {
    /// An image in pieces.
    Image {
        /// Its documents.
        documents: Documents,
        /// Its one layer.
        layer: Blob,
    },
    /// The files.
    Files,
}

/// Digest and size of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blob {
    /// SHA-256 in hexadecimal.
    sha256: String,
    size: u64,
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        Self { sha256: sha256(bytes), size: bytes.len() as u64 }
    }

    /// Its path in the archive.
    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.sha256)
    }
}

impl Export {
    /// Reads and hashes an image. `builder` has begun with it and got nothing else; `name` is that of the image in the archive.
    ///
    /// # Errors
    /// [`StorageError::BadInput`] if the image has a file that no layer can hold.
    pub(crate) fn image(
        builder: Builder,
        info: &ImageInfo,
        name: Option<&str>,
        workspace: Workspace,
    ) -> Result<Self, StorageError> {
        let what = format!("the image `{}`", info.called());
        let Builder { tree, spool, cancel, .. } = builder;
        let contents = spool.into_reader()?;
        let mut hash = Hashing::to(io::sink());
        told(tree::write(&what, &tree, &contents, Whiteouts::Oci, &cancel, &mut hash))?;
        let layer = hash.blob();
        let documents = Documents::new(info, name, &layer);
        Ok(Self { what, tree, contents, form: Form::Image { documents, layer }, _workspace: workspace })
    }

    /// The files that `builder` has collected. `what` names them in errors.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(crate) fn files(builder: Builder, what: &str, workspace: Workspace) -> Result<Self, StorageError> {
        let Builder { tree, spool, .. } = builder;
        let contents = spool.into_reader()?;
        Ok(Self { what: what.to_owned(), tree, contents, form: Form::Files, _workspace: workspace })
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// Those of reading the files; [`StorageError::Io`] with the error of `out`.
    pub(crate) fn write(&self, out: &mut impl Write, cancel: &Cancel) -> Result<(), StorageError> {
        told(match &self.form {
            Form::Files => self.tree(Whiteouts::Plain, out, cancel),
            Form::Image { documents, layer } => self.pieces(documents, layer, out, cancel),
        })
    }

    fn tree(&self, whiteouts: Whiteouts, out: &mut impl Write, cancel: &Cancel) -> Result<(), WriteError> {
        tree::write(&self.what, &self.tree, &self.contents, whiteouts, cancel, out)
    }

    fn pieces(
        &self,
        documents: &Documents,
        layer: &Blob,
        out: &mut impl Write,
        cancel: &Cancel,
    ) -> Result<(), WriteError> {
        let Documents { layout, index, legacy, manifest, config } = documents;
        let directory = Attributes::root(0o755);
        for name in ["blobs/", "blobs/sha256/"] {
            entry::begin(out, &head(name, EntryType::Directory, &directory, 0))?;
        }
        for (name, bytes) in [("oci-layout", layout), ("index.json", index), ("manifest.json", legacy)] {
            document(out, name, bytes)?;
        }
        for bytes in [manifest, config] {
            document(out, &Blob::of(bytes).path(), bytes)?;
        }
        let file = Attributes::root(0o644);
        entry::begin(out, &head(&layer.path(), EntryType::Regular, &file, layer.size))?;
        let mut hash = Hashing::to(&mut *out);
        self.tree(Whiteouts::Oci, &mut hash, cancel)?;
        let written = hash.blob();
        if written != *layer {
            // Before the end: nobody takes it for whole.
            let detail = format!(
                "its files changed while they were exported: their layer was {}, and {} when it was written",
                layer.sha256, written.sha256
            );
            return Err(StorageError::Damaged { what: self.what.clone(), detail }.into());
        }
        entry::pad(out, layer.size)?;
        Ok(entry::end(out)?)
    }
}

fn document(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let attributes = Attributes::root(0o644);
    entry::begin(out, &head(name, EntryType::Regular, &attributes, bytes.len() as u64))?;
    out.write_all(bytes)?;
    entry::pad(out, bytes.len() as u64)
}

fn head<'a>(name: &'a str, kind: EntryType, attributes: &'a Attributes, size: u64) -> NewEntry<'a> {
    NewEntry { name: name.as_bytes(), link: b"", kind, attributes, device: (0, 0), size, records: Vec::new() }
}

fn told(outcome: Result<(), WriteError>) -> Result<(), StorageError> {
    outcome.map_err(|error| match error {
        WriteError::Storage(error) => error,
        WriteError::Out(cause) => StorageError::Io { action: "writing", path: "the archive".into(), cause },
    })
}

/// Hashes and counts what is written through it.
struct Hashing<W> {
    out: W,
    hasher: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn to(out: W) -> Self {
        Self { out, hasher: Sha256::new(), size: 0 }
    }

    fn blob(self) -> Blob {
        Blob { sha256: hex(&self.hasher.finalize()), size: self.size }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
