//! `microvm template`: named recipes for VMs.

use std::io::Read as _;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use microvm_api::system::TemplateText;
use microvm_types::{ByteSize, Name};

use crate::commands::lifecycle::each_name;
use crate::context::Context;
use crate::error::CliError;
use crate::output::FAULTY;

/// Longest text of a template that is sent; the server has the same limit.
const LENGTH_MAX: u64 = 256 << 10;

/// Verbs for templates.
#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// List templates and files with errors (exit code 1 if there are any)
    #[command(visible_alias = "list")]
    Ls,
    /// Show everything about a template (JSON)
    Show(Show),
    /// Check a template file without storing it
    Validate(File),
    /// Store a file as a template
    Add(Add),
    /// Remove templates that were added
    Rm(Remove),
}

/// Show everything about a template (JSON)
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Name of the template
    name: String,
}

/// A file with a template
#[derive(Debug, Args)]
pub(crate) struct File {
    /// Template file (YAML or JSON)
    file: Utf8PathBuf,
    /// Name of the template [default: name of the file without its extension]
    #[arg(long)]
    name: Option<Name>,
}

/// Store a file as a template
#[derive(Debug, Args)]
#[command(after_help = "\
The server uses it at once, without a restart.

Example:
  microvm template show linux-default > mine.json   # edit it and remove its name
  microvm template add mine.json")]
pub(crate) struct Add {
    #[command(flatten)]
    file: File,
    /// Replace an existing template of that name
    #[arg(long)]
    replace: bool,
}

/// Remove templates that were added
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Names of the templates
    #[arg(required = true)]
    names: Vec<Name>,
}

impl File {
    /// The name, and the text.
    fn read(&self, replace: bool) -> Result<(String, TemplateText), CliError> {
        let failed = |error: std::io::Error| CliError::file("reading", &self.file, &error);
        let file = std::fs::File::open(&self.file).map_err(failed)?;
        let mut text = String::new();
        // One byte more than may be: the server refuses it, where a text cut at the limit could pass as another
        // template.
        file.take(LENGTH_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        let name = match &self.name {
            Some(name) => name.to_string(),
            None => self.file.file_stem().unwrap_or_default().to_owned(),
        };
        Ok((name, TemplateText { text, replace }))
    }
}

impl Template {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        match self {
            Self::Show(show) => context.output.json(&client.template(&show.name).await?)?,
            Self::Validate(file) => {
                let (name, text) = file.read(false)?;
                let template = client.validate_template(&name, &text).await?;
                context.output.value(&template, &format!("{name}: nothing is wrong with it"))?;
            }
            Self::Add(add) => {
                let (name, text) = add.file.read(add.replace)?;
                let template = client.put_template(&name, &text).await?;
                context.output.value(&template, &name)?;
            }
            Self::Rm(remove) => {
                return each_name(context, remove.names, async |name: &Name| {
                    client.remove_template(name.as_str()).await
                })
                .await;
            }
            Self::Ls => return list(context).await,
        }
        Ok(0)
    }
}

async fn list(context: &Context) -> Result<u8, CliError> {
    let list = context.client.templates().await?;
    let mut rows: Vec<Vec<String>> = list
        .templates
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
    let failed = list.failed.iter().map(|failed| {
        let nothing = || "-".to_owned();
        vec![failed.name.clone(), nothing(), nothing(), nothing(), format!("FAILED: {}", failed.reason)]
    });
    rows.extend(failed);
    let header = ["NAME", "CPUS", "MEMORY", "IMAGE", "DESCRIPTION"];
    let code = if list.failed.is_empty() { 0 } else { FAULTY };
    context.output.table(&list, &header, rows)?;
    Ok(code)
}
