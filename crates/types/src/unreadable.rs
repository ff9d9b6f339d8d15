//! Stored things that a list cannot show.

use serde::{Deserialize, Serialize};

/// Something that is stored and cannot be read. Lists name these beside what they could read, so that no list is taken for
/// whole that is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Unreadable {
    /// Its id or name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Unreadable {
    /// Something called `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self { name: name.into(), reason: reason.to_string() }
    }
}

/// What was found, and what could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// What could be read.
    pub found: Vec<T>,
    /// What could not.
    pub unreadable: Vec<Unreadable>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { found: Vec::new(), unreadable: Vec::new() }
    }
}

impl<T> From<Vec<T>> for Listed<T> {
    fn from(found: Vec<T>) -> Self {
        Self { found, unreadable: Vec::new() }
    }
}
