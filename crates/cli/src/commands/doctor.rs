//! `microvm doctor`: checks that this host can run VMs.

use clap::Args;
use microvm_api::system::{Check, CheckStatus, Doctor as Findings};
use microvm_types::ErrorKind;

use crate::context::Context;
use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;
use crate::remedy;
use crate::settings::Settings;

/// Check this host and say how to repair what is missing
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 if VMs can run here, 106 (unavailable) if a check failed.")]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) async fn run(self, settings: Settings, format: Format) -> Result<u8, CliError> {
        let output = Output::new(format);
        let root = settings.root.to_string();
        // The checks run in the server, with its rights and its environment: those that VMs are started with.
        let findings = match Context::open(settings, format).await {
            Ok(context) => {
                let mut findings = context.client.doctor().await?;
                let detail = format!("answers on {}", context.client.socket());
                findings.checks.insert(0, check("server", CheckStatus::Ok, detail, None));
                findings
            }
            // Without a server there is one finding, and it is the important one.
            Err(CliError::Problem(problem)) => {
                let advice = format!("repair that, then try again; the server's log is {root}/server.log");
                let server = check("server", CheckStatus::Failed, problem.detail.clone(), Some(advice));
                Findings { checks: vec![server], hypervisor: None }
            }
            Err(error) => return Err(error),
        };
        if output.is_json() {
            output.json(&findings)?;
        } else {
            let rows = findings.checks.iter().flat_map(|check| {
                let status = match check.status {
                    CheckStatus::Ok => "ok",
                    CheckStatus::Warning => "note",
                    CheckStatus::Failed => "FAILED",
                };
                let finding = vec![status.to_owned(), check.name.clone(), check.detail.clone()];
                let advice = check.advice.iter().cloned().chain(check.remedies.iter().map(remedy::command));
                let advice = advice.map(|advice| vec![String::new(), String::new(), format!("→ {advice}")]);
                std::iter::once(finding).chain(advice)
            });
            output.table(&(), &["STATUS", "CHECK", "FINDING"], rows)?;
        }
        let failed = findings.checks.iter().any(|check| check.status == CheckStatus::Failed);
        // Nothing is wrong with this program: what is missing is a host that can run VMs.
        Ok(if failed { ErrorKind::Unavailable.exit_code() } else { 0 })
    }
}

fn check(name: &str, status: CheckStatus, detail: String, advice: Option<String>) -> Check {
    Check { name: name.to_owned(), status, detail, advice, remedies: Vec::new() }
}
