//! `microvm events`: changes of VMs as they happen.

use clap::Args;
use microvm_api::queries::FollowEvents;
use microvm_api::query::{FilterState, RawBytes};
use microvm_api::vm::{Event, EventMessage};
use microvm_types::{ErrorKind, Phase, VmRef};

use crate::commands::ls::state;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;

/// Follow changes of VMs
#[derive(Debug, Args)]
#[command(after_help = "\
Prints one line for each change: when, which VM, its state after it, and why. With `--output json` one JSON object a
line. Only what happens from now on is shown; Ctrl-C ends it.

Examples:
  microvm events
  microvm events --vm dev --state failed
  microvm events --output json | jq -r .name")]
pub(crate) struct Events {
    /// Accepted for habit: events are always followed
    #[arg(short, long)]
    follow: bool,
    /// Only events of this VM; may be given several times
    #[arg(long = "vm", value_name = "VM")]
    vms: Vec<VmRef>,
    /// Only events after which the VM is in this state; may be given several times
    #[arg(long = "state", value_parser = state)]
    states: Vec<Phase>,
}

impl Events {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let query = FollowEvents {
            vm: self.vms.iter().map(|vm| RawBytes(vm.as_str().as_bytes().to_owned())).collect(),
            state: self.states.into_iter().map(FilterState::from).collect(),
        };
        let mut events = context.client.follow(&query).await?;
        loop {
            let message = match interrupts.unless(async { Ok(events.next().await?) }).await {
                // Whoever stops watching has not failed.
                Err(CliError::Interrupted(_)) => return Ok(0),
                message => message?,
            };
            match message {
                Some(message) if context.output.is_json() => context.output.json_line(&message)?,
                Some(EventMessage::Event(event)) => context.output.line(&described(&event))?,
                Some(EventMessage::Missed { missed }) => {
                    say(&format!(
                        "{missed} events came too fast and are left out; `microvm ls` shows how VMs are"
                    ));
                }
                None => {
                    let detail = "the server ended; events go on when another one runs";
                    return Err(CliError::new(ErrorKind::Unavailable, "server_ended", detail));
                }
            }
        }
    }
}

fn described(event: &Event) -> String {
    let state = if event.gone { "deleted" } else { event.state.as_str() };
    let detail = event.detail.as_ref().map(|detail| format!("  {detail}")).unwrap_or_default();
    // One event is one line, whatever a guest wrote into its reason.
    crate::visible::line(&format!("{} {} {state}{detail}", event.at, event.name))
}
