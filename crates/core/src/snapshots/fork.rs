//! Forking a running VM.

use std::collections::BTreeMap;
use std::time::Duration;

use microvm_ports::branch::BranchTimes;
use microvm_types::vm::{Limits, Origin, VmRecord};
use microvm_types::{Life, Name, VmId, VmRef};

use super::names::names;
use crate::actor::{Command, ForkPoint, check_branchable};
use crate::admission;
use crate::error::ServiceError;
use crate::service::{VmService, made_up_name};
use crate::shares::check_whole;
use crate::view::VmView;

/// How to fork.
#[derive(Debug, Clone, Default)]
pub struct ForkRequest {
    /// How many children, at least one.
    pub count: usize,
    /// Their names, with `{n}` for the number; `None`: made up.
    pub name: Option<String>,
    /// Labels on top of the parent's.
    pub labels: BTreeMap<String, String>,
    /// Free text of the owner's.
    pub metadata: BTreeMap<String, String>,
    /// What becomes of them over time.
    pub limits: Limits,
}

/// Children of a fork and what it cost the parent.
#[derive(Debug, Clone)]
pub struct Forked {
    /// The children, in the order of their numbers.
    pub vms: Vec<VmView>,
    /// How long the parent stood still, and for what.
    pub times: BranchTimes,
    /// Bytes of memory that were copied.
    pub changed_bytes: u64,
    /// From the request to the last answer.
    pub duration: Duration,
}

impl VmService {
    /// Forks a running or paused VM: children with its memory, processes and files, each with an identity of its own; it
    /// goes on. All of them come up, or none is left.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a VM in no phase to be forked, names that are taken, and no room.
    pub async fn fork_vm(&self, vm: &VmRef, request: ForkRequest) -> Result<Forked, ServiceError> {
        let began = tokio::time::Instant::now();
        self.refuse_waiting(vm)?;
        admission::check_labels(&request.labels)?;
        let parent = self.get(vm)?;
        check_branchable(parent.record.phase())?;
        check_whole(&parent.record.template)?;
        self.check_room(request.count, parent.record.template.memory_mib, 0).await?;
        let names = names(request.name.as_deref(), request.count)?;
        self.check_names_free(&names)?;
        let count = request.count;
        let point: ForkPoint = self.ask(vm, |reply| Command::Fork { count, reply }).await?;
        let origin = Origin::Fork { vm: point.record.id.clone() };
        let mut ready = point.waiting.iter().filter_map(|waiting| waiting.id().cloned());
        let records = names
            .into_iter()
            .map(|name| {
                let mut labels = point.record.labels.clone();
                labels.extend(request.labels.clone());
                let child = VmRecord {
                    labels,
                    metadata: request.metadata.clone(),
                    limits: request.limits,
                    ..point.record.clone()
                };
                let id = ready.next().unwrap_or_else(|| self.shared.ports.new_vm_id());
                self.child_record(id, child, name, origin.clone())
            })
            .collect::<Result<Vec<_>, _>>()?;
        let own_bytes = point.source.pages.len();
        self.check_room(count, point.record.template.memory_mib, own_bytes).await?;
        let vms = self.bring_up_children(&point.source, records, point.waiting).await?;
        Ok(Forked { vms, times: point.times, changed_bytes: point.changed_bytes, duration: began.elapsed() })
    }

    /// A record like `from` for a new VM.
    pub(super) fn child_record(
        &self,
        id: VmId,
        from: VmRecord,
        name: Option<Name>,
        origin: Origin,
    ) -> Result<VmRecord, ServiceError> {
        let name = match name {
            Some(name) => name,
            None => made_up_name(id.as_str())?,
        };
        let now = self.shared.ports.clock.now_ms();
        let VmRecord {
            // A child's own.
            id: _,
            name: _,
            life: _,
            failure: _,
            machine: _,
            origin: _,
            pool: _,
            created_ms: _,
            updated_ms: _,
            started_ms: _,
            tenant,
            template,
            image_digest,
            labels,
            metadata,
            limits,
            epoch,
        } = from;
        Ok(VmRecord {
            id,
            name,
            tenant,
            life: Life::new(),
            failure: None,
            template,
            image_digest,
            labels,
            metadata,
            limits,
            machine: None,
            origin,
            pool: None,
            epoch,
            created_ms: now,
            updated_ms: now,
            started_ms: None,
        })
    }

    /// Nothing is branched for children whose names are taken. (Whoever takes one meanwhile makes the fork fail later.)
    pub(crate) fn check_names_free(&self, names: &[Option<Name>]) -> Result<(), ServiceError> {
        let taken =
            names.iter().flatten().find(|name| self.shared.registry.find(&(*name).clone().into()).is_ok());
        taken.map_or(Ok(()), |name| Err(microvm_ports::StateError::NameTaken(name.clone()).into()))
    }
}
