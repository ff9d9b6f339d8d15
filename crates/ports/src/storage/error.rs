//! Errors of all stores.

use camino::Utf8PathBuf;
use microvm_types::{Action, ErrorKind, Remedy};

/// Refusal or failure of storage.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No image of that name or digest.
    #[error("no image is called `{0}`")]
    UnknownImage(String),
    /// Several images have a digest that begins so.
    #[error("several images have a digest that begins with `{prefix}`: {candidates}; give more characters")]
    AmbiguousImage {
        /// Beginning of the digests.
        prefix: String,
        /// The images, the first few of many, with a name of those that have one.
        candidates: String,
    },
    /// No kernel of that name.
    #[error("no kernel is called `{0}`")]
    UnknownKernel(String),
    /// There is no kernel at all that could be the default.
    #[error("there is no kernel: VMs boot with one of this host, whatever their image has")]
    NoKernel,
    /// No snapshot of that id.
    #[error("there is no snapshot `{0}`")]
    UnknownSnapshot(String),
    /// A stored file is not what was stored.
    #[error("{what} is damaged ({detail}): remove it and build or import it again")]
    Damaged {
        /// Name of the thing, with its kind.
        what: String,
        /// Expected and found content.
        detail: String,
    },
    /// The input is not what it should be: an archive with an entry that leaves its root, a recipe with a mistake …
    #[error("{what} cannot be used: {detail}")]
    BadInput {
        /// Name of the input.
        what: String,
        /// Fault of it.
        detail: String,
    },
    /// Still used.
    #[error("{name} is in use by {users}")]
    InUse {
        /// Name of the thing, with its kind.
        name: String,
        /// Its users, with what to do about them.
        users: String,
    },
    /// A disk file of the user's cannot be given what its VM wrote.
    #[error(
        "what the VM wrote to its disk could not be written back to {path}: {reason}; end that use and try again, or move the file away to give up what the VM wrote"
    )]
    NotWrittenBack {
        /// The user's file.
        path: Utf8PathBuf,
        /// Reason.
        reason: String,
    },
    /// A disk file of the user's has been given a part of what its VM wrote, and cannot take the rest.
    #[error(
        "{path} has a part of what the VM wrote to its disk, and the rest could not be written: {reason}; the VM keeps all of it: mend that and try again, or move the file away, which is worth nothing without the rest, and give up what the VM wrote"
    )]
    HalfWrittenBack {
        /// The user's file.
        path: Utf8PathBuf,
        /// Reason.
        reason: String,
    },
    /// A name that is taken.
    #[error("the name `{0}` is taken")]
    NameTaken(String),
    /// The disk is full, or will be.
    #[error(
        "no space left on {path} while {action}: {needed} more are needed; free some space and try again"
    )]
    DiskFull {
        /// File system by a path on it.
        path: Utf8PathBuf,
        /// Action under way.
        action: String,
        /// Amount, for people.
        needed: String,
    },
    /// All VMs together would take more of the disk than they may.
    #[error(
        "{action} needs {needed} more, and the VMs and snapshots of this root hold {held} of the {limit} that they may take together: delete some, or raise the disk limit of the server"
    )]
    OverDiskLimit {
        /// Action under way.
        action: String,
        /// Amount that it needs, for people.
        needed: String,
        /// Amount in use, for people.
        held: String,
        /// Limit, for people.
        limit: String,
    },
    /// A tool that is needed is not installed.
    #[error("`{tool}` was not found: install the package `{package}`")]
    ToolMissing {
        /// Program looked for.
        tool: String,
        /// Debian package that has it.
        package: String,
    },
    /// A tool ran and failed.
    #[error("`{tool}` failed ({status}): {detail}")]
    ToolFailed {
        /// Program that was run.
        tool: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        detail: String,
    },
    /// A registry refused or failed.
    #[error("the registry answered: {0}")]
    Registry(String),
    /// Reading or writing failed.
    #[error("{action} {path} failed: {cause}")]
    Io {
        /// Action under way.
        action: &'static str,
        /// With which file.
        path: Utf8PathBuf,
        /// Error of the system.
        cause: std::io::Error,
    },
}

/// Images named in a refusal of a digest that is too short.
const CANDIDATES: usize = 5;

impl StorageError {
    /// The refusal of a beginning that several digests have: each with a name, if it has one.
    #[must_use]
    pub fn ambiguous_image<'a>(
        prefix: &str,
        found: impl ExactSizeIterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Self {
        let more = found.len().saturating_sub(CANDIDATES);
        let shown = |(digest, name): (&str, Option<&str>)| match name {
            Some(name) => format!("{digest} ({name})"),
            None => digest.to_owned(),
        };
        let mut candidates: Vec<String> = found.take(CANDIDATES).map(shown).collect();
        if more > 0 {
            candidates.push(format!("and {more} more"));
        }
        Self::AmbiguousImage { prefix: prefix.to_owned(), candidates: candidates.join(", ") }
    }

    /// The class of this failure.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownImage(_) | Self::UnknownKernel(_) | Self::NoKernel | Self::UnknownSnapshot(_) => {
                ErrorKind::NotFound
            }
            Self::Io { .. } | Self::ToolFailed { .. } => ErrorKind::Internal,
            Self::BadInput { .. } | Self::AmbiguousImage { .. } => ErrorKind::Invalid,
            // What is stored is wrong, not the program: it is for whoever asked to remove it and make it again.
            Self::Damaged { .. }
            | Self::InUse { .. }
            | Self::NameTaken(_)
            | Self::NotWrittenBack { .. }
            | Self::HalfWrittenBack { .. } => ErrorKind::Conflict,
            Self::DiskFull { .. } | Self::OverDiskLimit { .. } => ErrorKind::Exhausted,
            Self::ToolMissing { .. } => ErrorKind::Unsupported,
            Self::Registry(_) => ErrorKind::Unavailable,
        }
    }

    /// Remedy.
    #[must_use]
    pub fn remedies(&self) -> Vec<Remedy> {
        match self {
            Self::AmbiguousImage { .. } => vec![Action::ListImages.any()],
            Self::UnknownImage(_) => {
                vec![Action::ListImages.any(), Action::BuildImage.any(), Action::PullImage.any()]
            }
            Self::UnknownKernel(_) => vec![Action::ListKernels.any()],
            Self::NoKernel => vec![Action::TakeDistributionKernel.any(), Action::BuildKernel.any()],
            Self::UnknownSnapshot(_) => vec![Action::ListSnapshots.any()],
            _ => Vec::new(),
        }
    }
}
