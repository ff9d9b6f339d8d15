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
    /// Default working directory; empty: the user's home.
    #[serde(default)]
    pub working_directory: String,
    /// Entry point of an OCI image.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default arguments of an OCI image.
    #[serde(default)]
    pub command: Vec<String>,
}

impl ImageConfig {
    /// This configuration with another over it; empty means unsaid. An entry point that is said takes default arguments of
    /// the one before away, as in a Dockerfile: they are none of its.
    #[must_use]
    pub fn with(mut self, over: &Self) -> Self {
        self.environment.extend(over.environment.clone());
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
