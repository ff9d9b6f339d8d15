//! Remedies of a failure, as commands.

use microvm_api::advice::Advice;
use microvm_types::Action;

use crate::limits;

/// One line: the command, and what it does.
pub(crate) fn command(advice: &Advice) -> String {
    let of = |placeholder: &str| advice.of.clone().unwrap_or_else(|| placeholder.to_owned());
    let vm = || of("VM");
    match advice.action {
        Action::StartServer => "`microvm serve` starts one".to_owned(),
        Action::ListVms => "`microvm ls` lists the VMs".to_owned(),
        Action::RemoveVm => format!("`microvm rm {}` deletes one", vm()),
        Action::ForgetDisks => format!(
            "`microvm rm --forget-disks {}` deletes it, and what it wrote to disks that cannot take it is lost",
            vm()
        ),
        Action::StartVm => format!("`microvm start {}` starts it", vm()),
        Action::StartVmCold => format!("`microvm start --cold {}` boots it from its disk", vm()),
        Action::RestartVm => format!("`microvm stop {0}`, then `microvm start {0}`", vm()),
        Action::ResumeVm => format!("`microvm resume {}` lets it go on", vm()),
        Action::StopVmByForce => format!("`microvm stop --force {}` ends it", vm()),
        Action::ShowConsole => format!("`microvm logs --console {}` shows what its kernel says", vm()),
        Action::CopyFiles => format!("`microvm cp HOST_PATH {}:PATH` copies files", vm()),
        Action::ListImages => "`microvm image ls` lists the images".to_owned(),
        Action::BuildImage => "`microvm image build` makes the default one".to_owned(),
        Action::PullImage => "`microvm image pull REFERENCE` fetches one from a registry".to_owned(),
        Action::ListKernels => "`microvm kernel ls` lists the kernels".to_owned(),
        Action::BuildKernel => {
            "`microvm kernel build` makes the fast one, which boots in less than half the time".to_owned()
        }
        Action::TakeDistributionKernel => {
            "`microvm kernel build --distribution` takes the distribution's".to_owned()
        }
        Action::ListSnapshots => "`microvm snapshot ls` lists the snapshots".to_owned(),
        Action::RemoveSnapshot => format!("`microvm snapshot rm {}` removes it", of("SNAPSHOT")),
        Action::RestoreSnapshot => format!("`microvm restore {}` makes a new VM of it", of("SNAPSHOT")),
        Action::ListGoldenSnapshots => format!("`microvm golden ls {}` lists them", of("TEMPLATE")),
        Action::ListPools => "`microvm pool ls` lists the pools".to_owned(),
        Action::RemovePool => format!("`microvm pool rm {}` removes it", of("POOL")),
        Action::RaiseLimit => limits::setting(advice.of.as_deref()).map_or_else(
            || "the operator of the server can raise the limit".to_owned(),
            |setting| format!("the server's setting {setting} raises the limit"),
        ),
        Action::ListVolumes => "`microvm volume ls` lists the volumes".to_owned(),
        Action::ResizePool => format!("`microvm pool resize {} --max N` lets it have more", of("POOL")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Every command that is named exists, options too.
    #[test]
    fn what_is_recommended_can_be_typed() {
        for action in Action::ALL {
            let said = command(&action.of("name").into());
            for typed in said.split('`').filter(|part| part.starts_with("microvm ")) {
                let mut at = crate::arguments::Arguments::command();
                at.build();
                for word in typed.split(' ').skip(1) {
                    if let Some(option) = word.strip_prefix("--") {
                        assert!(at.get_arguments().any(|one| one.get_long() == Some(option)), "{typed}");
                    } else if let Some(found) = at.find_subcommand(word) {
                        at = found.clone();
                    } else {
                        assert!(!at.has_subcommands(), "{typed}: {word}");
                    }
                }
            }
        }
    }
}
