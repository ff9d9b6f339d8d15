//! Image recipes: files in, requests out.

use std::collections::BTreeMap;

use camino::Utf8Path;
use microvm_api::image::{AddImage, ImageConfig, ImageFile, ImageSource};
use microvm_api::meant::with_meant;
use serde::Deserialize;

use crate::error::CliError;
use crate::settings::absolute;

/// The default image.
const DEFAULT: &str = include_str!("../recipes/debian-python.yaml");

/// A recipe as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    name: Option<String>,
    /// Build on an image of the store instead of Debian packages alone.
    from: Option<String>,
    suite: Option<String>,
    /// Users besides root, with `suite`.
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    pip: Vec<String>,
    #[serde(default)]
    npm: Vec<String>,
    #[serde(default)]
    files: Files,
    /// Run while the image is built.
    #[serde(default)]
    commands: Vec<String>,
    #[serde(default, alias = "env")]
    environment: BTreeMap<String, String>,
    /// What is said about the image.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    user: String,
    #[serde(default, alias = "workdir")]
    working_directory: String,
    #[serde(default)]
    entrypoint: Words,
    /// Default arguments of the entry point, or the default command.
    #[serde(default, alias = "command")]
    arguments: Words,
}

/// A command as a list of words, or as one line for a shell.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Words {
    #[default]
    None,
    List(Vec<String>),
    Line(String),
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::None => Self::new(),
            Words::List(list) => list,
            Words::Line(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
        }
    }
}

/// Files as entries, or as places in the image by what is put there.
#[derive(Debug)]
enum Files {
    List(Vec<ImageFile>),
    Map(BTreeMap<String, String>),
}

impl Default for Files {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

// By hand: an untagged enum would not say which field of which entry is wrong.
impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Files;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a list of files, or a map such as { ./app: /app }")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, entries: A) -> Result<Files, A::Error> {
                Deserialize::deserialize(serde::de::value::SeqAccessDeserializer::new(entries))
                    .map(Files::List)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, entries: A) -> Result<Files, A::Error> {
                Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(entries))
                    .map(Files::Map)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Files {
    fn entries(self) -> Vec<ImageFile> {
        match self {
            Self::List(entries) => entries,
            Self::Map(places) => places
                .into_iter()
                .map(|(source, path)| ImageFile { path, content: None, source: Some(source), mode: None })
                .collect(),
        }
    }
}

/// The request for a recipe in a file, or for the default image.
pub(crate) fn request(file: Option<&Utf8Path>, name: Option<String>) -> Result<AddImage, CliError> {
    match file {
        // It names no files, so it needs no folder.
        None => parse(DEFAULT, "the default recipe", Utf8Path::new("/"), name),
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| CliError::file("reading", file, &error))?;
            let folder = absolute(file)?.parent().map(Utf8Path::to_owned).unwrap_or_default();
            parse(&text, file.as_str(), &folder, name)
        }
    }
}

fn parse(text: &str, what: &str, folder: &Utf8Path, name: Option<String>) -> Result<AddImage, CliError> {
    let wrong = |why: String| CliError::invalid("recipe_invalid", format!("{what} cannot be used: {why}"));
    let recipe: Recipe =
        serde_yaml_ng::from_str(text).map_err(|error| wrong(with_meant(error.to_string())))?;
    let name = name.or(recipe.name).ok_or_else(|| {
        wrong("it has no name: write `name:` into it, or give one on the command line".to_owned())
    })?;
    let (source, packages) = match (recipe.from, recipe.suite) {
        (Some(_), Some(_)) => return Err(wrong("`from` and `suite` exclude each other".to_owned())),
        (Some(_), None) if !recipe.users.is_empty() => {
            return Err(wrong(
                "`users` go with `suite`; with `from`, write `commands: [useradd -m NAME]`".to_owned(),
            ));
        }
        (Some(reference), None) => (ImageSource::Image { reference }, recipe.packages),
        (None, suite) => {
            let suite = suite.unwrap_or_else(|| "bookworm".to_owned());
            (ImageSource::Debian { suite, packages: recipe.packages, users: recipe.users }, Vec::new())
        }
    };
    let mut files = recipe.files.entries();
    for file in &mut files {
        if file.content.is_some() == file.source.is_some() {
            return Err(wrong(format!("the file {} needs either `content` or `source`", file.path)));
        }
        file.source = file.source.take().map(|source| folder.join(source).into_string());
        if let Some(source) = file.source.as_ref().filter(|source| !Utf8Path::new(source).exists()) {
            return Err(wrong(format!("`files` names {source}, which is not there")));
        }
    }
    let config = ImageConfig {
        environment: recipe.environment,
        user: recipe.user,
        working_directory: recipe.working_directory,
        entrypoint: recipe.entrypoint.into(),
        command: recipe.arguments.into(),
        labels: recipe.labels,
    };
    let (pip, npm, commands) = (recipe.pip, recipe.npm, recipe.commands);
    Ok(AddImage {
        name,
        source,
        packages,
        pip,
        npm,
        files,
        commands,
        steps: Vec::new(),
        config,
        no_cache: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_recipe_is_good() {
        let request = request(None, None).unwrap();
        assert_eq!(request.name, "debian-python");
        assert!(matches!(request.source, ImageSource::Debian { ref packages, .. } if packages.len() == 7));
    }

    #[test]
    fn the_entry_point_goes_into_the_image() {
        let text = "name: a\nentrypoint: [/bin/serve, -v]\narguments: [all]\ncommands: [make]";
        let request = parse(text, "r", Utf8Path::new("/"), None).unwrap();
        assert_eq!(request.config.entrypoint, ["/bin/serve", "-v"]);
        assert_eq!(
            (request.config.command, request.commands),
            (vec!["all".to_owned()], vec!["make".to_owned()])
        );
    }

    #[test]
    fn paths_are_relative_to_the_recipe_and_mistakes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let here = Utf8Path::from_path(folder.path()).unwrap();
        std::fs::write(here.join("y"), "").unwrap();
        for good in ["name: a\nfiles: [{ path: /x, source: ./y }]", "name: a\nfrom: b\nfiles: { ./y: /x }"] {
            let request = parse(good, "r", here, None).unwrap();
            assert_eq!(request.files[0].source.as_deref(), Some(&*format!("{here}/./y")));
            assert_eq!(request.files[0].path, "/x");
        }
        for (bad, named) in [
            ("name: a\npackage: [x]", "package"),
            ("name: a\nfiles: [{ path: /x, sauce: ./y }]", "sauce"),
            ("name: a\nfiles: { ./nothing: /x }", "nothing"),
        ] {
            let refused = parse(bad, "r", here, None).unwrap_err().detail();
            assert!(refused.contains(named), "{refused}");
        }
        for bad in [
            "packages: [x]",
            "name: a\npackage: [x]",
            "name: a\nfiles: [{ path: /x }]",
            "name: a\nfrom: b\nsuite: c",
            "[",
        ] {
            assert!(parse(bad, "r", Utf8Path::new("/"), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_text_of_a_recipe() {
        use microvm_fuzz::Fuzz;
        let target = Fuzz::new("recipes").seed(DEFAULT.as_bytes()).memory(16 << 20, 1_024);
        target.seed(*b"name: a\nfrom: b\nfiles: [{ path: /x, source: ./y }]").run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            parse(&text, "r", Utf8Path::new("/here"), None)
                .map_or_else(|error| error.detail(), |request| format!("{:?}", request.source))
        });
    }
}
