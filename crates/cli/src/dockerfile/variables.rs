//! Variables of a build: the image's, those of `ENV`, those of `ARG`.

use std::collections::{BTreeMap, BTreeSet};

use super::words::{expand, split};

/// Variables in one place of a Dockerfile.
#[derive(Debug, Clone)]
pub(super) struct Variables<'a> {
    escape: char,
    /// The image's and those of `ENV`.
    environment: BTreeMap<String, String>,
    /// Of `ARG`, as far as they have a value.
    arguments: BTreeMap<String, String>,
    /// What the caller gives to arguments.
    given: &'a BTreeMap<String, String>,
    /// Names of arguments that were met, with a value or without.
    known: BTreeSet<String>,
}

/// Values that a builder knows by itself, for an `ARG` of that name.
fn own(name: &str) -> Option<String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    match name {
        "TARGETOS" | "BUILDOS" => Some("linux".to_owned()),
        "TARGETARCH" | "BUILDARCH" => Some(architecture.to_owned()),
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(format!("linux/{architecture}")),
        _ => None,
    }
}

impl<'a> Variables<'a> {
    pub(super) fn new(escape: char, given: &'a BTreeMap<String, String>) -> Self {
        Self {
            escape,
            environment: BTreeMap::new(),
            arguments: BTreeMap::new(),
            given,
            known: BTreeSet::new(),
        }
    }

    /// Those of a stage: arguments from before `FROM` are seen where an `ARG` names them again.
    pub(super) fn enter(&mut self, environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        self.environment.clone_from(environment);
        std::mem::take(&mut self.arguments)
    }

    /// A text with values in the places of variables, without quotes and escapes.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        self.expand_with(text, &|name| {
            self.environment.get(name).or_else(|| self.arguments.get(name)).cloned()
        })
    }

    /// The same where `FROM` can know no variables of images, and platforms are known.
    pub(super) fn expand_for_from(&self, text: &str) -> Result<String, String> {
        self.expand_with(text, &|name| self.arguments.get(name).cloned().or_else(|| own(name)))
    }

    fn expand_with(&self, text: &str, lookup: super::words::Lookup<'_>) -> Result<String, String> {
        expand(text, self.escape, lookup)
    }

    /// `NAME=value …`, or the old `NAME value`; values of one instruction do not see each other.
    pub(super) fn pairs(&self, text: &str) -> Result<Vec<(String, String)>, String> {
        let words = split(text, self.escape);
        if words.first().is_some_and(|first| !first.contains('=')) {
            let (name, value) = text
                .trim()
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("`{}` has no value: write NAME=VALUE", text.trim()))?;
            return Ok(vec![(self.name(name)?, self.expand(value.trim_start())?)]);
        }
        let pair = |word: &String| {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("`{word}` has no value: write NAME=VALUE"))?;
            Ok((self.name(name)?, self.expand(value)?))
        };
        words.iter().map(pair).collect()
    }

    fn name(&self, text: &str) -> Result<String, String> {
        let name = self.expand(text)?;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("`{text}` is no name"));
        }
        Ok(name)
    }

    /// `ENV`.
    pub(super) fn set(&mut self, pairs: &[(String, String)]) {
        self.environment.extend(pairs.iter().cloned());
    }

    /// `ARG`: the value that was given, else the one that is written, else that of `outer`, else a builder's own.
    pub(super) fn declare(&mut self, text: &str, outer: &BTreeMap<String, String>) -> Result<(), String> {
        for word in split(text, self.escape) {
            let (name, default) =
                word.split_once('=').map_or((&*word, None), |(name, value)| (name, Some(value)));
            let name = self.name(name)?;
            let default = default.map(|default| self.expand(default)).transpose()?;
            let value = self
                .given
                .get(&name)
                .cloned()
                .or(default)
                .or_else(|| outer.get(&name).cloned())
                .or_else(|| own(&name));
            if let Some(value) = value {
                self.arguments.insert(name.clone(), value);
            }
            self.known.insert(name);
        }
        Ok(())
    }

    /// Arguments as variables of a command: those of the environment win.
    pub(super) fn of_command(&self) -> BTreeMap<String, String> {
        let visible = self.arguments.iter().filter(|(name, _)| !self.environment.contains_key(*name));
        visible.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The first given argument that no `ARG` names.
    pub(super) fn superfluous(&self) -> Option<&str> {
        self.given.keys().find(|name| !self.known.contains(*name)).map(String::as_str)
    }
}
