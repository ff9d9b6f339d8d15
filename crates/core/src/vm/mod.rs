//! One VM: its actor, the commands it takes, and what all actors share. Nothing here knows of branches, pools or edges.
//!
//! ```text
//!  registry: id, name of a tenant ▶ VmHandle ── commands (mpsc, reply by oneshot) ──▶ VmActor
//!                                     ▲                                               │ one task per VM
//!                                     └─────────── Published, by watch ◀──────────────┘
//! ```

pub(crate) mod activity;
pub(crate) mod actor;
pub(crate) mod change;
pub(crate) mod command;
pub(crate) mod guard;
mod guest;
pub(crate) mod hooks;
pub(crate) mod lease;
pub(crate) mod made_volume;
pub(crate) mod own_command;
pub(crate) mod registry;
pub(crate) mod shared;
pub(crate) mod standby;
pub(crate) mod view;
pub(crate) mod volumes;

use std::sync::Arc;

use microvm_types::vm::VmRecord;
use tokio::sync::{mpsc, watch};

use self::activity::Activity;
use self::actor::VmActor;
use self::command::Beginning;
use self::registry::VmHandle;
use self::shared::Shared;
use self::view::Published;
use crate::error::ServiceError;
use crate::events::Cause;
use crate::state::Reservation;

/// Commands that may wait for one VM's actor before senders wait too.
const COMMAND_QUEUE: usize = 16;

/// Starts the task of one VM and registers it. What is reserved for it is given back when it is gone.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    record: VmRecord,
    beginning: Beginning,
    cause: &Cause,
    reservation: Reservation,
) -> Result<VmHandle, ServiceError> {
    let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
    let (publish, published) = watch::channel(Published {
        record: record.clone(),
        machine: None,
        guest: None,
        unreachable: None,
        comes_back: false,
        goes_to_disk: false,
    });
    let activity = Arc::new(Activity::new(shared.ports.clock.now_ms()));
    let handle = VmHandle { commands, published, activity: Arc::clone(&activity), cause: Cause::server() };
    // Before the task exists: a name that is taken starts no work that would have to be undone.
    shared.registry.insert(&record, handle.clone())?;
    let actor =
        VmActor::new(Arc::clone(shared), record, activity, inbox, publish, cause.clone(), reservation);
    shared.actors.spawn(actor.run(beginning));
    Ok(handle)
}
