//! Where templates come from: those of the program, and files that may change while the server runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use microvm_types::template::Template;

/// Refusal of a template file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template `{name}` cannot be used: {reason}")]
pub struct TemplateError {
    /// Name of the template or its file.
    pub name: String,
    /// The fault, in words.
    pub reason: String,
}

/// The templates of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSet {
    /// Those that can be used, by name.
    pub templates: BTreeMap<String, Template>,
    /// Files that cannot be used, each with the reason; they keep nothing else from being used.
    pub failed: Vec<TemplateError>,
}

/// Where templates come from while the server runs.
pub trait TemplateSource: Send + Sync + std::fmt::Debug {
    /// The templates as they are now. Asked at every use: it must be quick when nothing has changed, and never wait.
    fn current(&self) -> Arc<TemplateSet>;
    /// Checks what is to be the text of the file of a template, without keeping it.
    ///
    /// # Errors
    /// The fault, in words.
    fn check(&self, name: &str, text: &str) -> Result<Template, TemplateError>;
    /// Keeps the text of a template's file, whole or not at all; one of that name is replaced if `replace`.
    ///
    /// # Errors
    /// The fault, or the reason why it cannot be written.
    fn put(&self, name: &str, text: &str, replace: bool) -> Result<Template, TemplateError>;
    /// Removes the file of a template. Returns whether there was one.
    ///
    /// # Errors
    /// The reason why it cannot be removed.
    fn remove(&self, name: &str) -> Result<bool, TemplateError>;
}
