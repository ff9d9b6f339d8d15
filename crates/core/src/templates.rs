//! Reading templates.

use microvm_types::template::Template;

/// Why a template file is refused.
#[derive(Debug, thiserror::Error)]
#[error("the template `{name}` cannot be used: {reason}")]
pub struct TemplateError {
    /// Name of the template or its file.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

impl crate::Settings {
    /// The template of that name.
    #[must_use]
    pub(crate) fn template(&self, name: &str) -> Option<&Template> {
        self.templates.get(name)
    }
}
