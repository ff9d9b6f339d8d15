//! Templates: those that come with the program, and the operator's own files.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;
use camino::Utf8Path;
use microvm_types::template::Template;

/// Templates that come with the program: file name without ending, and text.
const BUILT_IN: [(&str, &str); 2] = [
    ("linux-default", include_str!("../../../templates/linux-default.yaml")),
    ("linux-microvm", include_str!("../../../templates/linux-microvm.yaml")),
];

/// Reads all templates: the built-in ones, then `<root>/templates/*.{yaml,yml,json}`, which replace those of the same
/// name.
///
/// # Errors
/// A file that cannot be read or understood stops the start, with its name and what is wrong with it: a template that
/// silently is not there would be found much later.
pub(crate) fn load(root: &Utf8Path) -> anyhow::Result<BTreeMap<String, Template>> {
    let mut templates = BTreeMap::new();
    for (name, text) in BUILT_IN {
        let template = parse(name, text)?;
        templates.insert(template.name.to_string(), template);
    }
    let directory = root.join("templates");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(templates),
        Err(error) => return Err(error).with_context(|| format!("reading {directory}")),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("reading {directory}"))?.path();
        if !path
            .extension()
            .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known))
        {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let template = parse(&stem, &text).with_context(|| format!("in {}", path.display()))?;
        templates.insert(template.name.to_string(), template);
    }
    Ok(templates)
}

/// YAML; JSON is YAML too. A missing name is the file's.
fn parse(file: &str, text: &str) -> anyhow::Result<Template> {
    let mut value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(text).context("the template is not YAML or JSON")?;
    let fields = value.as_mapping_mut().context("the template must be a mapping of fields")?;
    if !fields.contains_key("name") {
        fields.insert("name".into(), file.into());
    }
    serde_yaml_ng::from_value(value).context("the template has a field that cannot be used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_ones_are_right() {
        let templates = load(Utf8Path::new("/nonexistent")).unwrap();
        assert_eq!(templates.keys().collect::<Vec<_>>(), ["linux-default", "linux-microvm"]);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = parse("t", "image: x\nvcpu: 3\n").unwrap_err();
        assert!(format!("{error:#}").contains("vcpu"), "{error:#}");
        assert!(parse("t", r#"{"image": "x", "memory_mib": 256}"#).unwrap().memory_mib == 256);
        assert!(parse("t", "- a\n- b\n").is_err());
    }
}
