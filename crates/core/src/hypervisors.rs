//! The hypervisor drivers of one server, and which of them a VM belongs to.

use std::sync::Arc;

use camino::Utf8Path;
use microvm_ports::Hypervisor;
use microvm_types::VmId;
use microvm_types::template::{HypervisorChoice, Template};

use crate::error::ServiceError;

/// Hypervisor drivers by name. Cheap to clone.
#[derive(Clone)]
pub struct Hypervisors {
    all: Arc<[Arc<dyn Hypervisor>]>,
    /// Name of the driver of VMs whose record names none; `None`: the first one.
    of_unnamed: Option<&'static str>,
}

impl Hypervisors {
    /// `first` runs VMs whose template names no driver.
    #[must_use]
    pub fn new(first: Arc<dyn Hypervisor>, others: Vec<Arc<dyn Hypervisor>>) -> Self {
        Self { all: std::iter::once(first).chain(others).collect(), of_unnamed: None }
    }

    /// VMs whose record names no driver belong to this one: the only one that earlier versions had.
    #[must_use]
    pub const fn with_unnamed(mut self, driver: &'static str) -> Self {
        self.of_unnamed = Some(driver);
        self
    }

    /// Every driver, the first one first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Hypervisor>> {
        self.all.iter()
    }

    /// The driver of new VMs with this choice.
    ///
    /// # Errors
    /// [`ServiceError::UnknownHypervisor`].
    pub fn choose(&self, choice: &HypervisorChoice) -> Result<&Arc<dyn Hypervisor>, ServiceError> {
        match choice {
            HypervisorChoice::Auto => Ok(&self.all[0]),
            HypervisorChoice::Named(name) => self.named(name.as_str()),
        }
    }

    /// As [`Hypervisors::choose`], and writes its name into the template: from here on it is known by that, whatever drivers a
    /// later server has.
    ///
    /// # Errors
    /// [`ServiceError::UnknownHypervisor`].
    pub(crate) fn settle(&self, template: &mut Template) -> Result<&Arc<dyn Hypervisor>, ServiceError> {
        let hypervisor = self.choose(&template.hypervisor)?;
        template.hypervisor = HypervisorChoice::try_from(hypervisor.name().to_owned())
            .map_err(|error| ServiceError::Invalid { field: "hypervisor", reason: error.to_string() })?;
        Ok(hypervisor)
    }

    /// The driver of a VM whose record has this choice.
    ///
    /// # Errors
    /// [`ServiceError::UnknownHypervisor`] for a VM of a driver that this server does not have.
    pub fn of(&self, recorded: &HypervisorChoice) -> Result<&Arc<dyn Hypervisor>, ServiceError> {
        match recorded {
            HypervisorChoice::Auto => {
                let found = self.of_unnamed.and_then(|name| self.named(name).ok());
                Ok(found.unwrap_or(&self.all[0]))
            }
            HypervisorChoice::Named(name) => self.named(name.as_str()),
        }
    }

    /// Ends whatever runs for a VM that no record tells of, by whichever driver.
    ///
    /// # Errors
    /// If a process cannot be ended.
    pub(crate) async fn sweep(&self, id: &VmId, directory: &Utf8Path) -> Result<(), ServiceError> {
        for driver in self.all() {
            driver.sweep(id, directory, None).await?;
        }
        Ok(())
    }

    fn named(&self, name: &str) -> Result<&Arc<dyn Hypervisor>, ServiceError> {
        self.all.iter().find(|driver| driver.name() == name).ok_or_else(|| ServiceError::UnknownHypervisor {
            name: name.to_owned(),
            known: self.all.iter().map(|driver| driver.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

impl std::fmt::Debug for Hypervisors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.all.iter().map(|driver| driver.name())).finish()
    }
}
