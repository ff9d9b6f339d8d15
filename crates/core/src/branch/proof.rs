//! The proof of a snapshot: a VM that comes up from it and answers.

use std::collections::BTreeMap;
use std::time::Duration;

use microvm_types::VmId;
use microvm_types::template::Template;
use microvm_types::vm::{Limits, NewVm, Origin};

use super::children::{bring_up, child_record};
use super::restore::{planned_from, record_of};
use crate::context::Context;
use crate::error::ServiceError;
use crate::state::{Demand, GOLDEN_LABEL, Snapshot};
use crate::vm::shared::Shared;
use crate::vm::{guard, own_command};

/// A VM that proves a snapshot is deleted when nobody has used it for so long: its server died.
const IDLE_SECONDS: u64 = 300;
/// Longest time for the probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);

/// Makes a VM from a snapshot, has it run a command, and deletes it. It has no variables, commands or hooks of
/// anybody's.
///
/// # Errors
/// Whatever keeps it from coming up or answering; nothing of it is left.
pub(crate) async fn prove(context: &Context, snapshot: &Snapshot) -> Result<(), ServiceError> {
    let planned = planned_from(&context.shared, snapshot, 1).await?;
    let limits = Limits { idle_seconds: Some(IDLE_SECONDS), ephemeral: true, ..Limits::default() };
    let mut from = record_of(snapshot, &NewVm { limits, ..NewVm::default() });
    // Hidden from lists, and removed by the next server if this one dies.
    from.labels = BTreeMap::from([(GOLDEN_LABEL.to_owned(), "proving".to_owned())]);
    from.template = Template {
        environment: BTreeMap::new(),
        start_commands: Vec::new(),
        labels: BTreeMap::new(),
        hooks: Vec::new(),
        ..from.template
    };
    // The server's own, for a moment: a user at the limit of all VMs can take snapshots all the same.
    let places = vec![context.shared.reservations.existing(Demand::of(&from.template))];
    let origin = Origin::Snapshot { snapshot: snapshot.record.id.clone() };
    let record = child_record(context, context.shared.ports.new_vm_id(), from, None, origin)?;
    let id = record.id.clone();
    bring_up(context, &planned, vec![record], places, Vec::new()).await?;
    let proving = guard::guard(&context.shared, id);
    let answered = probe(&context.shared, &proving.id).await;
    guard::remove(proving, "VM that proves a snapshot").await;
    answered
}

/// A command that answers has gone through all that the first command of a user goes through.
pub(crate) async fn probe(shared: &Shared, id: &VmId) -> Result<(), ServiceError> {
    let guest = shared.registry.by_id(id)?.guest(shared).await?;
    Ok(own_command::probe(&*guest, PROBE_DEADLINE).await?)
}
