//! The push of the identity.

use std::time::{SystemTime, UNIX_EPOCH};

use microvm_ports::GuestError;
use microvm_ports::guest::Identity;
use microvm_protocol::messages::{
    Configure, Operation, PARTS, Reply, SHARES_PART, SetClock, Share, VOLUMES_PART, Variable, Volume,
};
use microvm_types::ErrorKind;

use crate::channel::Channel;
use crate::sanitize::clean;

/// Tells the guest who it is in `epoch`; fails unless it confirms every part.
pub(crate) async fn push(channel: &Channel, epoch: u64, identity: &Identity) -> Result<(), GuestError> {
    let configure = Configure {
        entropy: identity.entropy.to_vec(),
        wall_clock_ns: wall_clock_ns(),
        host_name: identity.host_name.clone(),
        machine_id: identity.machine_id.clone(),
        environment: identity
            .environment
            .iter()
            .map(|(name, value)| Variable { name: name.clone(), value: value.clone() })
            .collect(),
        user: identity.user.clone(),
        working_directory: identity.working_directory.clone(),
        start_commands: identity.start_commands.clone(),
        shares: identity
            .shares
            .iter()
            .map(|share| Share {
                tag: share.tag.clone(),
                target: share.target.clone(),
                read_only: share.read_only,
            })
            .collect(),
        epoch,
        volumes: identity
            .volumes
            .iter()
            .map(|volume| Volume {
                serial: volume.serial.clone(),
                target: volume.target.clone(),
                read_only: volume.read_only,
            })
            .collect(),
    };
    let reply = channel.unary(Operation::Configure(configure)).await?;
    let Reply::Configured(configured) = reply else {
        return Err(channel.broken("the answer to the identity is something else"));
    };
    let shares = (!identity.shares.is_empty()).then_some(SHARES_PART);
    let volumes = (!identity.volumes.is_empty()).then_some(VOLUMES_PART);
    for name in PARTS.into_iter().chain(shares).chain(volumes) {
        let problem = match configured.parts.iter().find(|part| part.name == name) {
            Some(part) if part.problem.is_empty() => continue,
            Some(part) => clean(&part.problem),
            None => "not confirmed".to_owned(),
        };
        return Err(GuestError::Refused {
            kind: ErrorKind::Internal,
            message: format!("the guest did not take over its identity ({name}): {problem}"),
        });
    }
    Ok(())
}

/// Sets the guest's wall clock to the host's.
///
/// # Errors
/// [`ErrorKind::Unsupported`] from an agent that is older than the request.
pub(crate) async fn tell_time(channel: &Channel) -> Result<(), GuestError> {
    channel.command(Operation::SetClock(SetClock { wall_clock_ns: wall_clock_ns() })).await
}

/// The host's wall clock in nanoseconds since 1970.
fn wall_clock_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(0)
}
