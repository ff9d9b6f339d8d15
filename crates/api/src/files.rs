//! Files of a guest.

use microvm_types::files::FileStat;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Entries of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileList {
    /// The entries.
    pub entries: Vec<FileStat>,
}

/// Hash of a file, computed in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileHash {
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}
