//! `microvm template`: named recipes for VMs.

use clap::{Args, Subcommand};
use microvm_api::system::TemplateList;
use microvm_types::ByteSize;

use crate::context::Context;
use crate::error::CliError;

/// What is done with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// List templates
    #[command(visible_alias = "list")]
    Ls,
    /// Show everything about a template (JSON)
    Show(Show),
}

/// Show everything about a template (JSON)
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Its name
    name: String,
}

impl Template {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Show(show) => context.output.json(&context.client.template(&show.name).await?)?,
            Self::Ls => {
                let templates = context.client.templates().await?;
                let rows: Vec<Vec<String>> = templates
                    .iter()
                    .map(|template| {
                        vec![
                            template.name.to_string(),
                            template.vcpus.to_string(),
                            ByteSize::mib(template.memory_mib.into()).to_string(),
                            template.image.clone(),
                            template.description.clone(),
                        ]
                    })
                    .collect();
                let header = ["NAME", "CPUS", "MEMORY", "IMAGE", "DESCRIPTION"];
                context.output.table(&TemplateList { templates }, &header, rows)?;
            }
        }
        Ok(0)
    }
}
