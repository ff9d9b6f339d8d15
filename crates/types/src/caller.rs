//! Callers: who asks, for which tenant, with which permissions.

use crate::vm::LOCAL_TENANT;

/// A right that an operation needs; nearly all need exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// See VMs and their events.
    VmRead,
    /// Create VMs.
    VmCreate,
    /// Start, stop, pause, resume and resize VMs.
    VmOperate,
    /// Delete VMs.
    VmDelete,
    /// Look into guests.
    GuestRead,
    /// Run commands in guests and reach their ports.
    GuestExecute,
    /// Move files into and out of guests.
    GuestFiles,
    /// See snapshots.
    SnapshotRead,
    /// Take and restore snapshots.
    SnapshotCreate,
    /// Remove snapshots.
    SnapshotDelete,
    /// See images, kernels and templates.
    ImageRead,
    /// Make and remove images and kernels.
    ImageWrite,
    /// See the host and the state of the server.
    SystemRead,
    /// End the server.
    SystemOperate,
}

impl Permission {
    /// The word used in the OpenAPI document and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VmRead => "vm:read",
            Self::VmCreate => "vm:create",
            Self::VmOperate => "vm:operate",
            Self::VmDelete => "vm:delete",
            Self::GuestRead => "guest:read",
            Self::GuestExecute => "guest:execute",
            Self::GuestFiles => "guest:file_transfer",
            Self::SnapshotRead => "snapshot:read",
            Self::SnapshotCreate => "snapshot:create",
            Self::SnapshotDelete => "snapshot:delete",
            Self::ImageRead => "image:read",
            Self::ImageWrite => "image:write",
            Self::SystemRead => "system:read",
            Self::SystemOperate => "system:operate",
        }
    }
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name for logs, events and audit.
    pub name: String,
    /// Owner of what the caller makes, and the only owner whose VMs, snapshots and pools the caller sees.
    pub tenant: String,
    /// What the caller may do; `None`: everything.
    pub permissions: Option<Vec<Permission>>,
}

impl Caller {
    /// Somebody who may do everything with what belongs to the local user.
    #[must_use]
    pub fn local(name: impl Into<String>) -> Self {
        Self { name: name.into(), tenant: LOCAL_TENANT.to_owned(), permissions: None }
    }

    /// The server itself, which acts for a tenant: fills pools, ends idle VMs.
    #[must_use]
    pub fn server(tenant: impl Into<String>) -> Self {
        Self { name: "server".to_owned(), tenant: tenant.into(), permissions: None }
    }

    /// Whether the caller may do what needs `permission`.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.as_ref().is_none_or(|all| all.contains(&permission))
    }
}
