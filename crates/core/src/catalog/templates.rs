//! Templates: those that come with the program, and files that may change while the server runs.

use std::sync::Arc;

use microvm_types::OperationName;
use microvm_types::template::Template;

use super::Catalog;
use crate::error::ServiceError;
use crate::template_source::{TemplateError, TemplateSet, TemplateSource};

impl Catalog {
    /// All templates by name, and the files that cannot be used.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`].
    pub fn templates(&self) -> Result<Arc<TemplateSet>, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_LIST)?;
        Ok(self.context.shared.templates())
    }

    /// One template.
    ///
    /// # Errors
    /// [`ServiceError::UnknownTemplate`]; [`ServiceError::Template`] if its file cannot be used.
    pub fn template(&self, name: &str) -> Result<Template, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_GET)?;
        self.context.shared.template(Some(name))
    }

    /// Checks the text of a template without keeping it.
    ///
    /// # Errors
    /// [`ServiceError::Template`] with what is wrong.
    pub fn check_template(&self, name: &str, text: &str) -> Result<Template, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_VALIDATE)?;
        Ok(self.template_source()?.check(name, text)?)
    }

    /// Keeps the text of a template for all VMs to come.
    ///
    /// # Errors
    /// [`ServiceError::Template`] with what is wrong.
    pub fn put_template(&self, name: &str, text: &str, replace: bool) -> Result<Template, ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_PUT)?;
        Ok(self.template_source()?.put(name, text, replace)?)
    }

    /// Removes the file of a template; a built-in one of the same name is used again.
    ///
    /// # Errors
    /// [`ServiceError::UnknownTemplate`] if there is no such file.
    pub fn remove_template(&self, name: &str) -> Result<(), ServiceError> {
        self.context.authorise(OperationName::TEMPLATE_REMOVE)?;
        if self.template_source()?.remove(name)? {
            return Ok(());
        }
        let set = self.context.shared.templates();
        if set.templates.contains_key(name) {
            let reason = "it comes with the program and has no file to remove".to_owned();
            return Err(TemplateError { name: name.to_owned(), reason }.into());
        }
        let known = set.templates.keys().cloned().collect::<Vec<_>>().join(", ");
        Err(ServiceError::UnknownTemplate { name: name.to_owned(), known })
    }

    fn template_source(&self) -> Result<&dyn TemplateSource, ServiceError> {
        let source = self.context.shared.settings.template_source.as_deref();
        source.ok_or_else(|| {
            let reason = "this server keeps no template files".to_owned();
            TemplateError { name: "any".to_owned(), reason }.into()
        })
    }
}
