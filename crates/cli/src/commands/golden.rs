//! `microvm golden`: what templates boot to, kept so that new VMs are forked instead of booted.

use clap::{Args, Subcommand};
use microvm_api::snapshot::GoldenVersion;
use microvm_types::ByteSize;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::{age, whole};

/// Verbs for golden snapshots.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A template is booted at its first use and its state saved as a golden snapshot; later VMs are forked from it, in a
tenth of the time. Each combination of image, kernel, size and QEMU has a golden snapshot of its own.")]
pub(crate) enum Golden {
    /// Boot a template again; new VMs are forked from the result
    Update(Named),
    /// List golden snapshots
    #[command(visible_alias = "list")]
    Ls(List),
    /// Return to the golden snapshot before the current one
    Rollback(Named),
}

/// One template
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the template
    template: String,
}

/// Golden snapshots to list
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this template as it is now [default: all]
    template: Option<String>,
}

impl Golden {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Ls(List { template: None }) => return all(context).await,
            Self::Ls(List { template: Some(template) }) => {
                let list = client.golden_versions(&template).await?;
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

/// Golden snapshots of all templates, also of images and sizes that no template has any more.
async fn all(context: &Context) -> Result<u8, CliError> {
    let mut list = context.client.list_snapshots(None, true).await?;
    list.snapshots.retain(|snapshot| snapshot.golden);
    let rows = list.snapshots.iter().map(|snapshot| {
        vec![
            snapshot.name.to_string(),
            snapshot.template.clone(),
            snapshot.image.clone(),
            format!("{}MiB", snapshot.memory_mib),
            ByteSize(snapshot.size_bytes).to_string(),
            age(&snapshot.created_at),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    context.output.table(&list, &["NAME", "TEMPLATE", "IMAGE", "MEMORY", "SIZE", "AGE"], rows)?;
    Ok(whole("the snapshot", &list.unreadable))
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
