//! Image recipes: files in, requests out.

use std::collections::BTreeMap;

use camino::Utf8Path;
use microvm_api::image::{AddImage, ImageConfig, ImageFile, ImageSource};
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
    /// Build on an image of the store instead of Debian packages.
    from: Option<String>,
    suite: Option<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    files: Vec<ImageFile>,
    #[serde(default)]
    commands: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    working_directory: String,
    #[serde(default)]
    entrypoint: Vec<String>,
    /// Default arguments of the entry point; `commands` are those run while the image is built.
    #[serde(default)]
    arguments: Vec<String>,
}

/// The request for a recipe in a file, or for the default image.
pub(crate) fn request(file: Option<&Utf8Path>, name: Option<String>) -> Result<AddImage, CliError> {
    match file {
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
    let recipe: Recipe = serde_yaml_ng::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let name =
        name.or(recipe.name).ok_or_else(|| wrong("it has no name: write one, or use --name".to_owned()))?;
    let source = match (recipe.from, recipe.suite) {
        (Some(_), Some(_)) => return Err(wrong("`from` and `suite` exclude each other".to_owned())),
        (Some(_), None) if !recipe.packages.is_empty() => {
            return Err(wrong(
                "`packages` need a `suite`, not `from`; install them by `commands`".to_owned(),
            ));
        }
        (Some(reference), None) => ImageSource::Image { reference },
        (None, suite) => {
            let suite = suite.unwrap_or_else(|| "bookworm".to_owned());
            ImageSource::Debian { suite, packages: recipe.packages }
        }
    };
    let mut files = recipe.files;
    for file in &mut files {
        if file.content.is_some() == file.source.is_some() {
            return Err(wrong(format!("the file {} needs either `content` or `source`", file.path)));
        }
        file.source = file.source.take().map(|source| folder.join(source).into_string());
    }
    let config = ImageConfig {
        environment: recipe.environment,
        user: recipe.user,
        working_directory: recipe.working_directory,
        entrypoint: recipe.entrypoint,
        command: recipe.arguments,
    };
    Ok(AddImage { name, source, files, commands: recipe.commands, config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_recipe_is_good() {
        let request = request(None, None).unwrap();
        assert_eq!(request.name, "debian-python");
        assert!(matches!(request.source, ImageSource::Debian { ref packages, .. } if packages.len() == 4));
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
        let good = "name: a\nfiles: [{ path: /x, source: ./y }]";
        let request = parse(good, "r", Utf8Path::new("/here"), None).unwrap();
        assert_eq!(request.files[0].source.as_deref(), Some("/here/./y"));
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
