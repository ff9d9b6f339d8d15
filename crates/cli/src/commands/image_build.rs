//! `microvm image build`: a recipe or a Dockerfile becomes an image.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use microvm_api::image::{AddImage, Image};
use microvm_client::ClientError;
use microvm_types::ErrorKind;

use crate::commands::image::add;
use crate::context::Context;
use crate::dockerfile::{self, is_dockerfile};
use crate::error::CliError;
use crate::notice::say;
use crate::pairs::variable;
use crate::recipe;

/// Build an image from a recipe or a Dockerfile, or the default image
#[derive(Debug, Args)]
#[command(after_help = "\
A Dockerfile (also Containerfile, Dockerfile.NAME, NAME.Dockerfile) has one stage, FROM an image here. FROM, RUN, COPY, ADD of files, ENV, ARG,
WORKDIR, USER, CMD, ENTRYPOINT, LABEL, EXPOSE and SHELL are known, and COPY --chown and --chmod; anything else is refused with its line. RUN
runs in a VM without a network: let a recipe fetch packages first, and write its image behind FROM. CONTEXT is the folder
whose files COPY takes, without what its .dockerignore names [default: the folder of the Dockerfile].

A recipe is YAML or JSON; nothing but `from` is needed, and no network in a VM:
  name: my-image
  from: debian-python                   # an image; or `suite: bookworm`, a Debian release
  packages: [jq]                        # of Debian
  pip: [requests]                       # wheels for the image's Python
  npm: [cowsay]                         # for the image's Node; scripts of packages do not run
  files: { ./app: /app, ./tool: /usr/local/bin/tool }   # files and folders beside the recipe; or a list:
  # - { path: /etc/motd, content: \"hello\\n\", mode: \"0644\" }
  # - { path: /usr/local/bin/tool, source: ./tool, mode: \"0755\" }
  commands: [\"python3 -m compileall -q /app\"]            # run in a VM, in order
  env: { LANG: C.UTF-8 }
  workdir: /app
  user: root
  entrypoint: [/usr/local/bin/tool]     # program that `microvm run --image` runs
  command: [--help]                     # its default arguments, or without it the default command

With `from` or FROM, an equal build on an equal image is not done again: its image is taken from the cache.

Examples:
  microvm image build                   the default image, debian-python
  microvm image build recipe.yaml
  microvm image build -t my-app .       the Dockerfile in this folder
  microvm image build -f docker/Dockerfile.test -t my-app --build-arg VERSION=2 .
  microvm image build my-image -f recipe.yaml --no-cache")]
pub(crate) struct Build {
    /// Recipe (ends in .yaml, .yml or .json), Dockerfile, folder with a Dockerfile, or a name instead of the recipe's
    #[arg(value_name = "RECIPE|CONTEXT|NAME")]
    name: Option<String>,
    /// Recipe or Dockerfile [default: the recipe of the default image]
    #[arg(short, long, value_name = "FILE")]
    file: Option<Utf8PathBuf>,
    /// Name of the image
    #[arg(short, long, value_name = "NAME")]
    tag: Option<String>,
    /// Value of an ARG of the Dockerfile (NAME alone: from the environment; repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    build_arg: Vec<(String, String)>,
    /// Build although an equal build has been done before
    #[arg(long)]
    no_cache: bool,
}

/// What a build is made from.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// A recipe, or the default one, with a name in its place.
    Recipe(Option<Utf8PathBuf>, Option<String>),
    /// A Dockerfile, and its context.
    Dockerfile(Utf8PathBuf, Option<Utf8PathBuf>),
}

/// True for a folder that is meant as one: a name of an image may be that of a folder by chance.
fn is_context(word: &Utf8Path) -> bool {
    let is_path = word.as_str().contains('/') || [".", ".."].contains(&word.as_str());
    word.is_dir() && (is_path || word.join("Dockerfile").exists())
}

impl Build {
    /// What the words mean. A first word that looks like a recipe, a Dockerfile or a folder is one, as long as no other is given.
    fn plan(&self) -> Plan {
        let is_recipe = |word: &str| [".yaml", ".yml", ".json"].iter().any(|ending| word.ends_with(ending));
        let word = self.name.as_ref().map(Utf8PathBuf::from);
        match (&self.file, word) {
            (Some(file), context) if is_dockerfile(file) => Plan::Dockerfile(file.clone(), context),
            (Some(file), Some(context)) if !is_recipe(file.as_str()) && is_context(&context) => {
                Plan::Dockerfile(file.clone(), Some(context))
            }
            (None, Some(word)) if is_recipe(word.as_str()) => Plan::Recipe(Some(word), None),
            (None, Some(word)) if is_dockerfile(&word) && !word.is_dir() => Plan::Dockerfile(word, None),
            (None, Some(word)) if is_context(&word) => Plan::Dockerfile(word.join("Dockerfile"), Some(word)),
            (None, Some(word)) if word.as_str().contains('/') => Plan::Recipe(Some(word), None),
            (file, _) => Plan::Recipe(file.clone(), self.name.clone()),
        }
    }

    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let request = match self.plan() {
            Plan::Recipe(file, name) => {
                if let Some((argument, _)) = self.build_arg.first() {
                    let detail =
                        format!("--build-arg {argument}: a recipe has no arguments, a Dockerfile has");
                    return Err(CliError::invalid("recipe_invalid", detail));
                }
                if let (Some(tag), Some(name)) = (&self.tag, &name) {
                    let detail = format!("the image has two names: {name} and -t {tag}");
                    return Err(CliError::invalid("recipe_invalid", detail));
                }
                recipe::request(file.as_deref(), self.tag.or(name))?
            }
            Plan::Dockerfile(file, folder) => {
                let name = self.tag.ok_or_else(|| {
                    CliError::invalid(
                        "dockerfile_invalid",
                        format!("the image of {file} has no name: add -t NAME"),
                    )
                })?;
                let source = dockerfile::Source::open(&file, folder.as_deref())?;
                let mut arguments = BTreeMap::new();
                arguments.extend(self.build_arg);
                let base = base(context, &source, &arguments).await?;
                let (request, notes) = dockerfile::request(&source, name, &base, &arguments)?;
                notes.iter().for_each(|note| say(note));
                request
            }
        };
        add(context, &AddImage { no_cache: self.no_cache, ..request }).await
    }
}

/// The image that a Dockerfile builds on.
async fn base(
    context: &Context,
    source: &dockerfile::Source,
    arguments: &BTreeMap<String, String>,
) -> Result<Image, CliError> {
    let (name, line) = dockerfile::base(source, arguments)?;
    context.client.image(&name).await.map_err(|error| match &error {
        ClientError::Problem(problem) if problem.code == "image_not_found" => {
            let tag = name.rsplit('/').next().unwrap_or(&name);
            let detail = format!(
                "{}, line {line}: FROM {name}: there is no image of this name here. `microvm image pull REGISTRY/NAME --name {tag}` \
                 fetches one, `microvm image ls` shows those there are",
                source.name
            );
            CliError::new(ErrorKind::NotFound, "image_not_found", detail)
        }
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_build_mean_a_recipe_a_dockerfile_or_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let here = Utf8Path::from_path(folder.path()).unwrap();
        std::fs::create_dir(here.join("app")).unwrap();
        let plan = |name: Option<&str>, file: Option<&str>| {
            let (name, file) = (name.map(str::to_owned), file.map(Utf8PathBuf::from));
            Build { name, file, tag: None, build_arg: Vec::new(), no_cache: false }.plan()
        };
        let path = |text: &str| Some(Utf8PathBuf::from(text));
        let app = here.join("app");
        for (name, file, expected) in [
            (None, None, Plan::Recipe(None, None)),
            (Some("x"), None, Plan::Recipe(None, Some("x".to_owned()))),
            (Some("x.yaml"), None, Plan::Recipe(path("x.yaml"), None)),
            (Some("./x"), None, Plan::Recipe(path("./x"), None)),
            (Some("x"), Some("r.yml"), Plan::Recipe(path("r.yml"), Some("x".to_owned()))),
            (Some("Dockerfile"), None, Plan::Dockerfile("Dockerfile".into(), None)),
            (Some("a/Containerfile"), None, Plan::Dockerfile("a/Containerfile".into(), None)),
            (Some("."), Some("test.Dockerfile"), Plan::Dockerfile("test.Dockerfile".into(), path("."))),
            (None, Some("Dockerfile.test"), Plan::Dockerfile("Dockerfile.test".into(), None)),
            (Some(app.as_str()), None, Plan::Dockerfile(app.join("Dockerfile"), Some(app.clone()))),
        ] {
            assert_eq!(plan(name, file), expected, "{name:?} {file:?}");
        }
    }
}
