//! Identity of this guest in its epoch. Each part is taken over and confirmed by itself.

use std::sync::Arc;

use microvm_protocol::messages::{
    Configure, Configured, FailureKind, PARTS, Part, SHARES_PART, VOLUMES_PART,
};

use super::agent::Agent;
use super::failure::{AgentError, AgentResult};
use super::platform::{Defaults, Platform};
use super::start_commands;

/// Takes over an identity. `session_epoch` is the epoch of the greeting.
///
/// # Errors
/// [`FailureKind::Conflict`] unless its epoch is newer than all before.
pub(super) async fn configure<P: Platform>(
    agent: &Arc<Agent<P>>,
    session_epoch: u64,
    identity: Configure,
) -> AgentResult<Configured> {
    // A host older than the field means the epoch it has greeted with.
    let epoch = if identity.epoch == 0 { session_epoch } else { identity.epoch };
    // First of all: of two hosts with one identity each, one gets through.
    agent.epoch().enter(epoch)?;
    let platform = &agent.platform;
    let owns_machine = platform.owns_machine();
    let mut problems: [Result<(), String>; PARTS.len()] = std::array::from_fn(|_| Ok(()));
    // Beside other programs of a host, as in tests, the host's clock and names are not the agent's to change.
    if owns_machine {
        problems[0] = platform.add_entropy(&identity.entropy);
        if identity.wall_clock_ns != 0 {
            problems[1] = platform.set_clock(identity.wall_clock_ns);
        }
        problems[2] = platform.set_host_name(&identity.host_name);
        problems[3] = platform.set_machine_id(&identity.machine_id);
        platform.make_working_directory(&identity.working_directory);
    }
    agent.set_defaults(Defaults {
        environment: identity.environment,
        user: identity.user,
        working_directory: identity.working_directory,
    });
    let shares = if owns_machine && !identity.shares.is_empty() {
        Some(platform.mount_shares(identity.shares).await)
    } else {
        None
    };
    let volumes = if owns_machine && !identity.volumes.is_empty() {
        Some(platform.mount_volumes(identity.volumes).await)
    } else {
        None
    };
    // After the mounts: commands may need what is on them.
    start_commands::run(agent, identity.start_commands);
    let further = shares
        .map(|result| (SHARES_PART, result))
        .into_iter()
        .chain(volumes.map(|result| (VOLUMES_PART, result)));
    let parts =
        PARTS.iter().copied().zip(problems).chain(further).map(|(name, problem)| Part {
            name: name.to_owned(),
            problem: problem.err().unwrap_or_default(),
        });
    Ok(Configured { parts: parts.collect() })
}

/// Sets the wall clock of a guest. An agent beside other programs of a host leaves the host's clock alone.
///
/// # Errors
/// If the time is before 1970 or the system refuses it.
pub(super) fn set_clock<P: Platform>(agent: &Agent<P>, nanoseconds: i64) -> AgentResult<()> {
    if nanoseconds <= 0 {
        return Err(AgentError::invalid("the time of day must be after 1970"));
    }
    if !agent.platform.owns_machine() {
        return Ok(());
    }
    let set = agent.platform.set_clock(nanoseconds);
    set.map_err(|problem| AgentError::new(FailureKind::Internal, problem))
}
