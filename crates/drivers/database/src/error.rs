//! Errors of opening a database.

use camino::Utf8PathBuf;
use microvm_types::ErrorKind;

/// A database could not be opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be made or made private.
    #[error("the state database {path} cannot be made: check the directory and its permissions")]
    Create {
        /// Path of the file.
        path: Utf8PathBuf,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The file is there and is not a database that can be used.
    #[error(
        "the state database {path} cannot be opened: it holds the record of every VM. If it is damaged, put a copy of it \
         in its place (with the -wal file beside it, if the copy has one); without a copy a server that starts with no \
         database knows none of the VMs, leaves their disks where they are and lists them in `doctor`"
    )]
    Open {
        /// Path of the file.
        path: Utf8PathBuf,
        /// Error of SQLite.
        #[source]
        source: sqlx::Error,
    },
    /// A newer program has used this database.
    #[error(
        "the state database {path} has schema {found} and this program knows up to {known}: use the newer program \
         that wrote it"
    )]
    Newer {
        /// Path of the file.
        path: Utf8PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest schema version of this program.
        known: i64,
    },
    /// Bringing it to the newest schema failed; it is as it was.
    #[error("the state database {path} could not be brought to schema {version}")]
    Migrate {
        /// Path of the file.
        path: Utf8PathBuf,
        /// The schema version that was being made.
        version: i64,
        /// Error of SQLite.
        #[source]
        source: sqlx::Error,
    },
}

impl OpenError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Create { .. } | Self::Open { .. } | Self::Migrate { .. } => ErrorKind::Internal,
            Self::Newer { .. } => ErrorKind::Unsupported,
        }
    }
}
