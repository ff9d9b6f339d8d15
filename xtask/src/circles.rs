//! Modules of a crate that use each other in a circle.
//!
//! A module here is a file or folder right below `src`: what lies in one folder may be as close as it likes. Tests may use
//! what they like, and what a crate's root exports again counts as use of the module that has it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::architecture::Sections;
use crate::{host, words};

/// Who uses whom.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// Checks every crate. Exceptions are the section `circles`: crates with the modules that are in a circle now. They may
/// only be shortened.
pub(crate) fn check(architecture: &Sections) -> Result<()> {
    let none = BTreeMap::new();
    let exceptions = architecture.get("circles").unwrap_or(&none);
    let mut files: BTreeMap<String, Vec<(Vec<String>, String)>> = BTreeMap::new();
    for path in words::committed()? {
        let Some((name, module)) = path.strip_suffix(".rs").and_then(|path| path.split_once("/src/")) else {
            continue;
        };
        let Ok(text) = std::fs::read_to_string(host::repository().join(&path)) else { continue };
        let mut module: Vec<String> = module.split('/').map(str::to_owned).collect();
        module.pop_if(|last| last == "mod");
        files.entry(name.to_owned()).or_default().push((module, text));
    }
    let mut wrong = Vec::new();
    for (name, files) in &files {
        let found = in_circles(&uses(files));
        let listed = exceptions.get(name).and_then(Value::as_array);
        let known: BTreeSet<&str> = listed.into_iter().flatten().filter_map(Value::as_str).collect();
        let new: Vec<&str> = found.iter().map(String::as_str).filter(|it| !known.contains(it)).collect();
        if !new.is_empty() {
            wrong.push(format!("{name}: {} use each other in a circle", new.join(", ")));
        }
        let gone: Vec<&str> = known.into_iter().filter(|it| !found.contains(*it)).collect();
        if !gone.is_empty() {
            wrong.push(format!(
                "{name}: {} are in no circle any more: take the exception out",
                gone.join(", ")
            ));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("circles of modules:\n  {}", wrong.join("\n  ")) }
}

/// The graph of the modules right below `src`. `files`: path of each module, with its text.
fn uses(files: &[(Vec<String>, String)]) -> Uses {
    let is_root = |module: &[String]| matches!(module, [only] if only == "lib" || only == "main");
    let tops: BTreeSet<&str> =
        files.iter().filter(|(module, _)| !is_root(module)).map(|(module, _)| module[0].as_str()).collect();
    let mut exported: BTreeMap<String, String> = BTreeMap::new();
    for (_, text) in files.iter().filter(|(module, _)| is_root(module)) {
        for path in paths(text) {
            let path: Vec<&str> =
                path.iter().map(String::as_str).skip_while(|part| *part == "crate").collect();
            if let [first, .., last] = path[..]
                && tops.contains(first)
            {
                exported.insert(last.to_owned(), first.to_owned());
            }
        }
    }
    let mut uses = Uses::new();
    for (module, text) in files {
        if is_root(module) || module.iter().any(|part| part == "tests" || part == "fuzz") {
            continue;
        }
        for path in paths(text) {
            let above = path.iter().take_while(|part| *part == "super").count();
            let first = match path.first().map(String::as_str) {
                Some("crate") => path.get(1),
                // Only as many as lead out of the module to the root of the crate.
                Some("super") if above == module.len() => path.get(above),
                _ => None,
            };
            let Some(first) = first else { continue };
            let to = if tops.contains(first.as_str()) { Some(first) } else { exported.get(first) };
            if let Some(to) = to.filter(|to| **to != module[0]) {
                uses.entry(module[0].clone()).or_default().insert(to.clone());
            }
        }
    }
    uses
}

/// Modules that can be reached from themselves.
fn in_circles(uses: &Uses) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for start in uses.keys() {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = uses[start].iter().collect();
        while let Some(module) = next.pop() {
            if module == start {
                found.insert(start.clone());
                break;
            }
            if seen.insert(module) {
                next.extend(uses.get(module).into_iter().flatten());
            }
        }
    }
    found
}

/// All paths that a file names, its tests left out: those of `use` with braces taken apart, and others that begin with
/// `crate` or `super`.
fn paths(text: &str) -> Vec<Vec<String>> {
    let text = code(text);
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut found = Vec::new();
    for item in
        text.split("\nuse ").skip(1).chain(text.split(" use ").skip(1)).chain(text.strip_prefix("use "))
    {
        expand(item.split(';').next().unwrap_or_default(), &mut Vec::new(), &mut found);
    }
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let rest = &text[at..];
            let end =
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            found.push(rest[..end].split("::").map(str::to_owned).collect());
        }
    }
    found
}

/// Takes the tree of a `use` apart.
fn expand(tree: &str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let Some((path, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let parts = path.split("::").map(|part| part.trim().to_owned());
        found.push(before.iter().cloned().chain(parts).collect());
        return;
    };
    let depth = before.len();
    before.extend(
        path.trim().trim_end_matches("::").split("::").filter(|part| !part.is_empty()).map(str::to_owned),
    );
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let (mut level, mut start) = (0usize, 0);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => level += 1,
            '}' => level = level.saturating_sub(1),
            ',' if level == 0 => {
                if !inside[start..at].trim().is_empty() {
                    expand(&inside[start..at], before, found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    before.truncate(depth);
}

/// A file without comments and texts, as far as this check needs it.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut in_text = false;
        let mut last = ' ';
        let mut characters = line.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '\\' if in_text => {
                    characters.next();
                }
                '"' if last != '\'' => in_text = !in_text,
                '/' if !in_text && characters.peek() == Some(&'/') => break,
                _ if !in_text => out.push(c),
                _ => {}
            }
            last = c;
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let split = |path: &str| path.split('/').map(str::to_owned).collect();
        let files: Vec<_> = files.iter().map(|(path, text)| (split(path), (*text).to_owned())).collect();
        in_circles(&uses(&files)).into_iter().collect()
    }

    #[test]
    fn a_circle_is_found_whatever_way_it_is_written() {
        for back in [
            "use crate::a::X;",
            "use crate::{b::Y, a};",
            "use super::super::a;",
            "fn f() { crate::a::g() }",
            "use crate::X;",
        ] {
            let files = [("lib", "mod a;\npub use a::X;"), ("a", "use crate::b::{self, Y};"), ("b/c", back)];
            assert_eq!(circles(&files), ["a", "b"], "{back}");
        }
    }

    #[test]
    fn what_is_no_circle_is_none() {
        let one_way = [
            ("lib", ""),
            ("a", "use crate::b::Y;"),
            ("b/c", "use super::d;\nuse std::fs;"),
            ("b/d", "use super::c;"),
        ];
        assert!(circles(&one_way).is_empty());
        for harmless in [
            "// crate::a::X",
            "fn f() { g(\"crate::a::X\") }",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}",
        ] {
            assert!(circles(&[("a", "use crate::b;"), ("b", harmless)]).is_empty(), "{harmless}");
        }
        assert!(circles(&[("a", "use crate::b;"), ("b/tests", "use crate::a;")]).is_empty());
    }

    #[test]
    fn this_repository_has_no_circle_but_those_listed() {
        check(&crate::architecture::read().unwrap()).unwrap();
    }
}
