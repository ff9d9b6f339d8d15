//! Templates: those that come with the program, and files that may change while the server runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use microvm_types::template::Template;

use crate::error::ServiceError;
use crate::service::{Shared, VmService};

/// Why a template file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template `{name}` cannot be used: {reason}")]
pub struct TemplateError {
    /// Name of the template or its file.
    pub name: String,
    /// What is wrong.
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
    /// What is wrong with it.
    fn check(&self, name: &str, text: &str) -> Result<Template, TemplateError>;
    /// Keeps the text of a template's file, whole or not at all; one of that name is replaced if `replace`.
    ///
    /// # Errors
    /// What is wrong with it, or keeps it from being written.
    fn put(&self, name: &str, text: &str, replace: bool) -> Result<Template, TemplateError>;
    /// Removes the file of a template. Returns whether there was one.
    ///
    /// # Errors
    /// What keeps it from being removed.
    fn remove(&self, name: &str) -> Result<bool, TemplateError>;
}

impl Shared {
    /// The templates as they are now.
    pub(crate) fn templates(&self) -> Arc<TemplateSet> {
        match &self.settings.template_source {
            Some(source) => source.current(),
            None => Arc::new(TemplateSet { templates: self.settings.templates.clone(), failed: Vec::new() }),
        }
    }
}

impl VmService {
    /// All templates by name, and the files that cannot be used.
    #[must_use]
    pub fn template_set(&self) -> Arc<TemplateSet> {
        self.shared.templates()
    }

    /// One template.
    ///
    /// # Errors
    /// [`ServiceError::UnknownTemplate`]; [`ServiceError::Template`] if its file cannot be used.
    pub fn template(&self, name: &str) -> Result<Template, ServiceError> {
        let set = self.shared.templates();
        // Of a file that cannot be used an older or built-in template of the same name is not what was meant.
        if let Some(failed) = set.failed.iter().find(|failed| failed.name == name) {
            return Err(failed.clone().into());
        }
        set.templates.get(name).cloned().ok_or_else(|| ServiceError::UnknownTemplate {
            name: name.to_owned(),
            known: set.templates.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Checks the text of a template without keeping it.
    ///
    /// # Errors
    /// [`ServiceError::Template`] with what is wrong.
    pub fn check_template(&self, name: &str, text: &str) -> Result<Template, ServiceError> {
        Ok(self.template_source()?.check(name, text)?)
    }

    /// Keeps the text of a template for all VMs to come.
    ///
    /// # Errors
    /// [`ServiceError::Template`] with what is wrong.
    pub fn put_template(&self, name: &str, text: &str, replace: bool) -> Result<Template, ServiceError> {
        Ok(self.template_source()?.put(name, text, replace)?)
    }

    /// Removes the file of a template; a built-in one of the same name is used again.
    ///
    /// # Errors
    /// [`ServiceError::UnknownTemplate`] if there is no such file.
    pub fn remove_template(&self, name: &str) -> Result<(), ServiceError> {
        if self.template_source()?.remove(name)? {
            return Ok(());
        }
        let set = self.shared.templates();
        if set.templates.contains_key(name) {
            let reason = "it comes with the program and has no file to remove".to_owned();
            return Err(TemplateError { name: name.to_owned(), reason }.into());
        }
        let known = set.templates.keys().cloned().collect::<Vec<_>>().join(", ");
        Err(ServiceError::UnknownTemplate { name: name.to_owned(), known })
    }

    fn template_source(&self) -> Result<&dyn TemplateSource, ServiceError> {
        let source = self.shared.settings.template_source.as_deref();
        source.ok_or_else(|| {
            let reason = "this server keeps no template files".to_owned();
            TemplateError { name: "any".to_owned(), reason }.into()
        })
    }
}
