//! `microvm golden`: what templates boot to, kept so that new VMs are forked instead of booted.

use clap::{Args, Subcommand};
use microvm_api::snapshot::GoldenVersion;
use microvm_types::ByteSize;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::age;

/// What is done with golden snapshots.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A template is booted once, at its first use; every later VM of it is forked from that moment, in a tenth of the
time. Another image, kernel, size or QEMU makes a golden snapshot of its own by itself.")]
pub(crate) enum Golden {
    /// Boot a template anew; VMs to come are forked from that
    Update(Named),
    /// List the versions of a template
    #[command(visible_alias = "list")]
    Ls(Named),
    /// Fork from the version before the current one from now on
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
