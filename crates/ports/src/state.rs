//! State that must survive a crash of the server.

use async_trait::async_trait;
use microvm_types::vm::VmRecord;
use microvm_types::{ErrorKind, Name, VmId};

/// Refusal or failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another VM of this tenant has the name.
    #[error("the name `{0}` is taken: choose another one or delete the VM that has it")]
    NameTaken(Name),
    /// No row of that id.
    #[error("no VM has the id {0}")]
    Unknown(VmId),
    /// A stored row cannot be read: made by a newer version, or damaged.
    #[error("the stored record of VM {id} cannot be read: {reason}")]
    Unreadable {
        /// Key of the row.
        id: String,
        /// Fault of it.
        reason: String,
    },
    /// There is no room for it.
    #[error("no space left for the state database while {action}: free some space and try again")]
    Full {
        /// Action under way.
        action: &'static str,
    },
    /// The database itself failed.
    #[error("the state database failed while {action}")]
    Database {
        /// Action under way.
        action: &'static str,
        /// The driver's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StateError {
    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NameTaken(_) => ErrorKind::Conflict,
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Unreadable { .. } | Self::Database { .. } => ErrorKind::Internal,
        }
    }
}

/// Content of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredVms {
    /// Readable rows, in order of creation.
    pub records: Vec<VmRecord>,
    /// Ids of rows that cannot be read, as they are stored, and what is wrong with each. What belongs to them must not
    /// be touched: somebody may be able to repair the row.
    pub unreadable: Vec<(String, String)>,
}

/// Kind of a document. Few and small: each is read whole when the server starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKind {
    /// A pool, by its name.
    Pool,
    /// The golden snapshot that a template uses, where it is not the newest.
    GoldenChoice,
    /// When a golden snapshot was last used, by its id.
    GoldenUse,
    /// Kept part of the description of an imported snapshot, by its id.
    ImportedSnapshot,
}

impl DocumentKind {
    /// All kinds, for tests.
    pub const ALL: [Self; 4] = [Self::Pool, Self::GoldenChoice, Self::GoldenUse, Self::ImportedSnapshot];

    /// The word stored with it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::GoldenChoice => "golden_choice",
            Self::GoldenUse => "golden_use",
            Self::ImportedSnapshot => "imported_snapshot",
        }
    }
}

/// Documents of one kind in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredDocuments {
    /// Keys with readable documents.
    pub documents: Vec<(String, serde_json::Value)>,
    /// Keys of those that cannot be read, and what is wrong with each.
    pub unreadable: Vec<(String, String)>,
}

/// Rows that outlive the server. Every method is atomic and durable when it returns.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// Adds a VM.
    ///
    /// # Errors
    /// [`StateError::NameTaken`] if a VM of the same tenant has its name; nothing is written then.
    async fn insert_vm(&self, record: &VmRecord) -> Result<(), StateError>;

    /// Replaces the row of `record.id` whole.
    ///
    /// # Errors
    /// [`StateError::Unknown`] if there is none.
    async fn update_vm(&self, record: &VmRecord) -> Result<(), StateError>;

    /// Removes a row; removing what is not there is fine.
    async fn delete_vm(&self, id: &VmId) -> Result<(), StateError>;

    /// All VMs in order of creation. A row that cannot be read does not hide the others.
    async fn vms(&self) -> Result<StoredVms, StateError>;

    /// Keeps a document under a key, in place of the one that was there.
    async fn put_document(
        &self,
        kind: DocumentKind,
        key: &str,
        document: &serde_json::Value,
    ) -> Result<(), StateError>;

    /// Removes a document; removing what is not there is fine.
    async fn delete_document(&self, kind: DocumentKind, key: &str) -> Result<(), StateError>;

    /// All documents of a kind in order of their keys. One that cannot be read does not hide the others.
    async fn documents(&self, kind: DocumentKind) -> Result<StoredDocuments, StateError>;
}
