//! Children of one state: all of them come up, or none is left.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use microvm_types::template::Template;
use microvm_types::vm::{Origin, VmRecord};
use microvm_types::{Life, Name, VmId};
use tokio::sync::oneshot;

use crate::context::Context;
use crate::creation::made_up_name;
use crate::error::ServiceError;
use crate::launch::Planned;
use crate::state::{Demand, Reservation};
use crate::undo;
use crate::vm;
use crate::vm::command::Beginning;
use crate::vm::guard::{self, VmGuard};
use crate::vm::registry::VmHandle;
use crate::vm::standby::StandbyVmm;
use crate::vm::view::VmView;

/// Places for so many children, before anything is begun.
pub(super) fn reserve(
    context: &Context,
    count: usize,
    template: &Template,
) -> Result<Vec<Reservation>, ServiceError> {
    context.shared.reservations.reserve(count, Demand::of(template))
}

/// Refuses what the host has no memory for.
pub(super) async fn check_room(
    context: &Context,
    count: usize,
    template: &Template,
    own_bytes: u64,
) -> Result<(), ServiceError> {
    if count == 0 {
        return Err(ServiceError::Invalid { field: "count", reason: "at least 1 is needed".to_owned() });
    }
    match context.shared.ports.hypervisor(template)?.room(template.machine_memory_mib(), own_bytes).await {
        // Memory that is shared counts once; each child is charged with what it will probably change.
        Some(room) if room < count => Err(ServiceError::NoRoomForForks { asked: count, room }),
        _ => Ok(()),
    }
}

/// Brings up one VM per record from the same state, several at once. `places`: one for each. `standby`: VMMs of some of them. If it fails, or is
/// dropped, no child is left.
pub(super) async fn bring_up(
    context: &Context,
    planned: &Planned,
    records: Vec<VmRecord>,
    places: Vec<Reservation>,
    mut standby: Vec<StandbyVmm>,
) -> Result<Vec<VmView>, ServiceError> {
    let count = records.len();
    let mut guards: Vec<VmGuard> = Vec::new();
    let mut handles = Vec::new();
    let mut coming = FuturesUnordered::new();
    for (index, (record, place)) in records.into_iter().zip(places).enumerate() {
        let id = record.id.clone();
        let (reply, outcome) = oneshot::channel();
        let beginning = Beginning::Create { start: true, planned: Box::new(planned.clone()), reply };
        handles.push(vm::spawn(&context.shared, record, beginning, &context.cause, place)?);
        // Claimed after the actor has the id: until then its drop ends the VMM.
        if let Some(index) = standby.iter().position(|one| one.id() == Some(&id)) {
            standby.swap_remove(index).claim();
        }
        guards.push(guard::guard(&context.shared, id));
        coming.push(async move { (index, outcome.await) });
    }
    while let Some((index, outcome)) = coming.next().await {
        if let Err(error) = outcome.map_err(|_| ServiceError::ShuttingDown).and_then(|outcome| outcome) {
            // Told when all are gone: whoever tries again finds names and memory free.
            let gone = guards.into_iter().map(|child| guard::remove(child, "child of a failed fork"));
            futures::future::join_all(gone).await;
            // The number of the child says nothing where there is one.
            if count == 1 {
                return Err(error);
            }
            return Err(ServiceError::Fork { number: index + 1, count, cause: Box::new(error) });
        }
    }
    // All of them run: from here on they live as any other VM.
    guards.into_iter().for_each(|child| drop(undo::keep(child)));
    Ok(handles.iter().map(VmHandle::view).collect())
}

/// A record like `from` for a new VM.
pub(super) fn child_record(
    context: &Context,
    id: VmId,
    from: VmRecord,
    name: Option<Name>,
    origin: Origin,
) -> Result<VmRecord, ServiceError> {
    let name = match name {
        Some(name) => name,
        None => made_up_name(id.as_str())?,
    };
    let now = context.shared.ports.clock.now_ms();
    let VmRecord {
        // A child's own.
        id: _,
        name: _,
        life: _,
        failure: _,
        machine: _,
        origin: _,
        pool: _,
        generation: _,
        boot_ms: _,
        created_by: _,
        created_ms: _,
        updated_ms: _,
        started_ms: _,
        last_stop: _,
        planned_shutdown: _,
        tenant,
        template,
        image_digest,
        labels,
        metadata,
        limits,
        epoch,
        memory_now_mib,
    } = from;
    Ok(VmRecord {
        id,
        name,
        tenant,
        created_by: context.caller.name.clone(),
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
        generation: 0,
        boot_ms: None,
        memory_now_mib,
        created_ms: now,
        updated_ms: now,
        started_ms: None,
        last_stop: None,
        planned_shutdown: None,
    })
}

/// Nothing is branched for children whose names are taken. (Whoever takes one meanwhile makes the fork fail later.)
pub(super) fn check_names_free(context: &Context, names: &[Option<Name>]) -> Result<(), ServiceError> {
    names.iter().flatten().try_for_each(|name| check_name_free(context, name))
}

/// Refuses a name that another VM of the caller's tenant has.
pub(crate) fn check_name_free(context: &Context, name: &Name) -> Result<(), ServiceError> {
    if context.shared.registry.is_taken(&context.caller.tenant, name) {
        return Err(microvm_ports::StateError::NameTaken(name.clone()).into());
    }
    Ok(())
}
