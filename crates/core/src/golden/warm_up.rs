//! Getting a machine warm before its golden snapshot is taken.

use std::time::Duration;

use microvm_types::VmId;
use microvm_types::template::Template;

use crate::error::ServiceError;
use crate::vm::own_command;
use crate::vm::shared::Shared;

/// Longest time for one command, in which an emulated guest starts Python three dozen times.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs what VMs of the template will run, so that it is in the page cache of each of them. A guest that
/// does not answer is none to make others from.
pub(super) async fn run(shared: &Shared, vm: &VmId, template: &Template) -> Result<(), ServiceError> {
    let guest = shared.registry.by_id(vm)?.guest(shared).await?;
    own_command::probe(&*guest, DEADLINE).await?;
    for (number, line) in (1..).zip(&template.warm_up) {
        let command = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        let problem = match own_command::run(&*guest, command, DEADLINE).await {
            Ok(status) if status.shell_code() == 0 => continue,
            Ok(status) => format!("exit code {}", status.shell_code()),
            Err(error) => error.to_string(),
        };
        // Its number and not its text, which may hold a secret.
        tracing::warn!(template = %template.name, number, problem, "a command to warm up failed");
    }
    // What is not on the disk yet would be written there by every child, seconds after it was made. An image without
    // the program has slower children, nothing else.
    let _ = own_command::run(&*guest, vec!["sync".to_owned()], DEADLINE).await;
    Ok(())
}
