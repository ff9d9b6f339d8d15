//! Forking a running VM.

use std::time::Duration;

use microvm_ports::branch::BranchTimes;
use microvm_types::vm::{NewVm, Origin, VmRecord};
use microvm_types::{OperationName, Phase, VmRef};

use super::Branches;
use super::children::{bring_up, check_names_free, check_room, child_record, reserve};
use super::names::names;
use crate::admission;
use crate::error::ServiceError;
use crate::launch::shares::check_whole;
use crate::launch::{Planned, Start, image_reference};
use crate::vm::command::{Command, ForkPoint, check_branchable};
use crate::vm::view::VmView;

/// A fork to be made.
#[derive(Debug, Clone, Default)]
pub struct ForkRequest {
    /// Number of children, at least 1.
    pub count: usize,
    /// Their names, with `{n}` for the number; `None`: made up.
    pub name: Option<String>,
    /// Wishes of the owner.
    pub vm: NewVm,
}

/// Children of a fork and what it cost the parent.
#[derive(Debug, Clone)]
pub struct Forked {
    /// The children, in the order of their numbers.
    pub vms: Vec<VmView>,
    /// Length of the parent's pause, by its parts.
    pub times: BranchTimes,
    /// Bytes of memory that were copied.
    pub changed_bytes: u64,
    /// From the request to the last answer.
    pub duration: Duration,
}

impl Branches {
    /// Forks a running or paused VM, or one that hibernates, which is woken for it: children with its memory, processes and
    /// files, each with an identity of its own; it goes on. All of them come up, or none is left.
    ///
    /// # Errors
    /// See [`ServiceError`]; in particular a VM in no phase to be forked, names that are taken, and no room.
    pub async fn fork(&self, vm: &VmRef, request: ForkRequest) -> Result<Forked, ServiceError> {
        self.context.authorise(OperationName::VM_FORK)?;
        let began = tokio::time::Instant::now();
        let (context, handle) = (&self.context, self.context.owned(vm)?);
        admission::check_labels(&request.vm.labels)?;
        // A first look, so that most refusals need no turn of the actor; it looks again when it branches.
        let parent = handle.settled().await?;
        check_branchable(parent.phase())?;
        check_whole(&parent.template)?;
        let is_asleep = parent.phase() == Phase::Hibernated;
        // One that sleeps takes memory again itself.
        check_room(context, request.count.saturating_add(usize::from(is_asleep)), &parent.template, 0)
            .await?;
        // Taken before the parent is paused: a fork that the limits refuse costs it nothing.
        let places = reserve(context, request.count, &parent.template)?;
        let names = names(request.name.as_deref(), request.count)?;
        check_names_free(context, &names)?;
        let count = request.count;
        let reference = image_reference(&parent.image_digest, &parent.template);
        if is_asleep {
            // Nobody is woken for children that cannot be made.
            context.shared.ports.images.image(reference).await?;
        }
        // The image of the children is looked up while the state is taken.
        let image = async { Ok(context.shared.ports.images.image(reference).await?) };
        let point = handle.ask(|reply| Command::Fork { count, reply });
        let (point, image): (ForkPoint, _) = futures::try_join!(point, image)?;
        let origin = Origin::Fork { vm: point.record.id.clone() };
        let mut ready = point.standby.iter().filter_map(|standby| standby.id().cloned());
        let records = names
            .into_iter()
            .map(|name| {
                let mut labels = point.record.labels.clone();
                labels.extend(request.vm.labels.clone());
                let child = VmRecord {
                    labels,
                    metadata: request.vm.metadata.clone(),
                    limits: request.vm.limits,
                    ..point.record.clone()
                };
                let id = ready.next().unwrap_or_else(|| context.shared.ports.new_vm_id());
                child_record(context, id, child, name, origin.clone())
            })
            .collect::<Result<Vec<_>, _>>()?;
        // Looked at again: how much the parent has changed is known only now.
        let own_bytes = point.source.memory.page_bytes();
        check_room(context, count, &point.record.template, own_bytes).await?;
        let planned = Planned { image, start: Start::State(Box::new(point.source)) };
        let vms = bring_up(context, &planned, records, places, point.standby).await?;
        Ok(Forked { vms, times: point.times, changed_bytes: point.changed_bytes, duration: began.elapsed() })
    }
}
