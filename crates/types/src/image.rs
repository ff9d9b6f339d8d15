//! Images as everybody speaks of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How programs run in an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageConfig {
    /// Variables of every command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Default user; empty: root.
    #[serde(default)]
    pub user: String,
    /// Default working directory, made where the image lacks it; a relative one is below `/`. Empty: the user's home.
    #[serde(default)]
    pub working_directory: String,
    /// Entry point of an OCI image.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default arguments of an OCI image.
    #[serde(default)]
    pub command: Vec<String>,
    /// What is said about the image, by keys such as `org.opencontainers.image.title`. Nothing here reads them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// This configuration with another over it; empty means unsaid. An entry point that is said takes default arguments of
    /// the one before away, as in a Dockerfile: they are none of its.
    #[must_use]
    pub fn with(mut self, over: &Self) -> Self {
        self.environment.extend(over.environment.clone());
        self.labels.extend(over.labels.clone());
        for (base, over) in
            [(&mut self.user, &over.user), (&mut self.working_directory, &over.working_directory)]
        {
            if !over.is_empty() {
                base.clone_from(over);
            }
        }
        if !over.entrypoint.is_empty() {
            self.entrypoint.clone_from(&over.entrypoint);
            self.command.clear();
        }
        if !over.command.is_empty() {
            self.command.clone_from(&over.command);
        }
        self
    }
}

/// A step of a build whose order counts, as a Dockerfile has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BuildStep {
    /// Run a command in a VM of the image so far.
    Run(RunStep),
    /// Put files of the host in.
    Copy(CopyStep),
    /// Make a directory that is not there yet.
    Directory(DirectoryStep),
}

/// A command of a build.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunStep {
    /// The step in messages, for example `line 4: RUN make`.
    pub title: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables besides those of the image.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// User, optionally `user:group`; empty: the image's, else root.
    #[serde(default)]
    pub user: String,
    /// Working directory; empty: the image's.
    #[serde(default)]
    pub working_directory: String,
}

/// Files and folders of a folder of the host, the context, that are put into an image. Nothing outside of the context is read, and
/// no link leads out of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CopyStep {
    /// The step in messages, for example `line 3: COPY . /app`.
    pub title: String,
    /// The context: an absolute path on the server's host.
    pub context: String,
    /// Patterns of what is left out, as lines of a `.dockerignore`.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// Paths below the context, with `*`, `?` and `[…]` in names. Of a folder everything in it is put in.
    pub sources: Vec<String>,
    /// Absolute path in the image. With a slash at its end, and where the image has a directory there, it is the directory for
    /// the files; otherwise it is the file.
    pub destination: String,
    /// `user` or `user:group` by number, or by the names that the image has; empty: root.
    #[serde(default)]
    pub owner: String,
    /// Permission bits of everything that is put in, in octal. Without, those of the host without set-id bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Refuse sources that are archives, as the caller means them to be unpacked.
    #[serde(default)]
    pub refuse_archives: bool,
}

/// A directory of an image. One that is there, also behind links, stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DirectoryStep {
    /// The step in messages, for example `line 2: WORKDIR /app`.
    pub title: String,
    /// Absolute path in the image.
    pub path: String,
    /// `user` or `user:group` that gets it if it is new; empty: root.
    #[serde(default)]
    pub owner: String,
}

/// Kind of a difference between a VM's root and its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RootChange {
    /// The image has nothing there.
    Added,
    /// The image has something else there, or something below it differs.
    Changed,
    /// It is only in the image.
    Deleted,
}

/// A path that differs between a VM's root and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChangedPath {
    /// Kind of the difference.
    pub change: RootChange,
    /// Absolute path, lossy if it is not UTF-8.
    pub path: String,
    /// The exact bytes of the path, only where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
}

impl ChangedPath {
    /// The difference at a path relative to the root.
    #[must_use]
    pub fn new(change: RootChange, path: &[u8]) -> Self {
        let bytes = [b"/", path].concat();
        match String::from_utf8(bytes) {
            Ok(path) => Self { change, path, path_bytes: None },
            Err(error) => {
                let path = String::from_utf8_lossy(error.as_bytes()).into_owned();
                Self { change, path, path_bytes: Some(error.into_bytes()) }
            }
        }
    }

    /// The exact bytes of the path.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.path_bytes.as_deref().unwrap_or(self.path.as_bytes())
    }
}

/// User and password at a registry. Neither is shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryLogin {
    /// Name of the user; without `:`.
    pub user: String,
    /// Password, or an access token that the registry gives out as one.
    pub password: String,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("RegistryLogin")
    }
}
