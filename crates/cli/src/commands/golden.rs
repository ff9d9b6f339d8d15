//! `microvm golden`: what templates boot to, kept so that new VMs are forked instead of booted.

use clap::{Args, Subcommand};
use microvm_api::snapshot::GoldenVersion;
use microvm_types::ByteSize;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::age;

/// Verbs for golden snapshots.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A template is booted at its first use and its state saved as a golden snapshot; later VMs are forked from it, in a
tenth of the time. Each combination of image, kernel, size and QEMU has a golden snapshot of its own.")]
pub(crate) enum Golden {
    /// Boot a template again; new VMs are forked from the result
    Update(Named),
    /// List the golden snapshots of a template
    #[command(visible_alias = "list")]
    Ls(Named),
    /// Return to the golden snapshot before the current one
    Rollback(Named),
}

/// One template
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the template
    template: String,
}

impl Golden {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Ls(named) => {
                let list = client.golden_versions(&named.template).await?;
                let rows: Vec<Vec<String>> = list.versions.iter().map(row).collect();
                context.output.table(&list, &["NAME", "CURRENT", "SIZE", "AGE"], rows)?;
            }
            Self::Update(named) => {
                let making = async { Ok(client.update_golden(&named.template).await?) };
                let version = Interrupts::new()?.unless(making).await?;
                context.output.value(&version, version.snapshot.name.as_str())?;
            }
            Self::Rollback(named) => {
                let version = client.rollback_golden(&named.template).await?;
                context.output.value(&version, version.snapshot.name.as_str())?;
            }
        }
        Ok(0)
    }
}

fn row(version: &GoldenVersion) -> Vec<String> {
    let snapshot = &version.snapshot;
    vec![
        snapshot.name.to_string(),
        if version.current { "yes" } else { "" }.to_owned(),
        ByteSize(snapshot.size_bytes).to_string(),
        age(&snapshot.created_at),
    ]
}
