//! Requirements of pip and packages of npm as a recipe may write them: by name and version, as an index lists them.
//!
//! Both tools also take addresses and paths, and run what they find there on the host. So the forms that may pass are listed, and
//! no others pass.

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;

/// Longest word, in bytes.
const WORD_MAX: usize = 512;
/// Endings by which pip and npm take a word for a file, whatever stands before them.
const ARCHIVES: [&str; 13] = [
    ".zip",
    ".whl",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz",
    ".tar.xz",
    ".txz",
    ".tlz",
    ".tar.lz",
    ".tar.lzma",
    ".egg",
];
/// Comparisons of versions of Python packages, the longest first.
const COMPARISONS: [&str; 8] = ["===", "==", "!=", "<=", ">=", "~=", "<", ">"];

/// Refuses a requirement of pip that is not `name[extras]` with versions and markers.
pub(super) fn check_pip(requirements: &[String]) -> Result<(), StorageError> {
    match requirements.iter().find(|word| !is_pip(word)) {
        Some(word) => Err(bad_input(
            format!("the pip requirement `{}`", word.escape_debug()),
            "write the name of a package, its extras, versions and markers, as `name[extra]>=1.2; python_version<\"3.12\"`; \
             addresses and paths are not taken: files of the host go to `files`, anything else to `commands`",
        )),
        None => Ok(()),
    }
}

/// Refuses a package of npm that is not `name`, `@scope/name` or either with a version, a tag or a range.
pub(super) fn check_npm(packages: &[String]) -> Result<(), StorageError> {
    match packages.iter().find(|word| !is_npm(word)) {
        Some(word) => Err(bad_input(
            format!("the npm package `{}`", word.escape_debug()),
            "write `name` or `@scope/name`, and a version, a tag or a range if one is meant, as `name@^1.2`; addresses, \
             paths and aliases are not taken: files of the host go to `files`, anything else to `commands`",
        )),
        None => Ok(()),
    }
}

fn is_pip(word: &str) -> bool {
    let (requirement, marker) = match word.split_once(';') {
        Some((requirement, marker)) => (requirement.trim_end_matches(' '), Some(marker)),
        None => (word, None),
    };
    let name_end = requirement.find(|c: char| !is_name_character(c)).unwrap_or(requirement.len());
    let (name, rest) = requirement.split_at(name_end);
    let mut rest = rest.trim_start_matches(' ');
    if let Some(inside) = rest.strip_prefix('[') {
        let Some((extras, after)) = inside.split_once(']') else { return false };
        if !extras.split(',').all(|extra| is_python_name(extra.trim_matches(' '))) {
            return false;
        }
        rest = after.trim_start_matches(' ');
    }
    word.len() <= WORD_MAX
        && is_python_name(name)
        && !is_archive(name)
        && !is_archive(requirement)
        && (rest.is_empty() || rest.split(',').all(|version| is_version(version.trim_matches(' '))))
        && marker.is_none_or(is_marker)
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

fn is_python_name(name: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(ends) && name.ends_with(ends) && name.chars().all(is_name_character)
}

fn is_version(text: &str) -> bool {
    let Some(version) = COMPARISONS.iter().find_map(|comparison| text.strip_prefix(comparison)) else {
        return false;
    };
    let version = version.trim_start_matches(' ');
    version.starts_with(|c: char| c.is_ascii_alphanumeric())
        && version.chars().all(|c| is_name_character(c) || matches!(c, '*' | '+' | '!'))
}

/// Only characters of conditions: none of an address or a path.
fn is_marker(text: &str) -> bool {
    let of_conditions = |c: char| {
        is_name_character(c) || matches!(c, ' ' | '"' | '\'' | '(' | ')' | '<' | '>' | '=' | '!' | '~' | '*')
    };
    !text.trim().is_empty() && text.chars().all(of_conditions)
}

fn is_npm(word: &str) -> bool {
    let (scope, rest) = match word.strip_prefix('@') {
        Some(scoped) => match scoped.split_once('/') {
            Some((scope, rest)) => (Some(scope), rest),
            None => return false,
        },
        None => (None, word),
    };
    let (name, version) = rest.split_once('@').map_or((rest, None), |(name, version)| (name, Some(version)));
    word.len() <= WORD_MAX
        && scope.is_none_or(is_npm_name)
        && is_npm_name(name)
        && version.is_none_or(is_npm_version)
        && !is_archive(name)
        && !is_archive(word)
}

fn is_npm_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_name_character)
}

fn is_npm_version(version: &str) -> bool {
    let of_ranges =
        |c: char| is_name_character(c) || matches!(c, '^' | '~' | '<' | '>' | '=' | '*' | '+' | '|' | ' ');
    !version.is_empty()
        && !version.starts_with(['.', '-', ' '])
        && !version.ends_with(' ')
        && version.chars().all(of_ranges)
}

fn is_archive(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let text = text.split('[').next().unwrap_or_default().trim_end_matches(' ');
    ARCHIVES.iter().any(|ending| text.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_versions_pass() {
        for word in [
            "requests",
            "Flask==3.0.2",
            "ruamel.yaml",
            "uvicorn[standard]>=0.20,<1",
            "a [x, y] ~= 1.4",
            "numpy!=1.19.*",
            "x===1!2.0+local",
            "tomli>=1; python_version < \"3.11\" and sys_platform == 'linux'",
            "zipp",
        ] {
            assert!(check_pip(&[word.to_owned()]).is_ok(), "{word}");
        }
        for word in [
            "express",
            "@types/node",
            "typescript@5.4.2",
            "@vue/cli@next",
            "left-pad@^1.0.0 || ~2.1",
            "a@>=1 <2",
            "a@*",
        ] {
            assert!(check_npm(&[word.to_owned()]).is_ok(), "{word}");
        }
    }

    #[test]
    fn addresses_paths_and_options_are_refused_as_requirements_of_pip() {
        for word in [
            "",
            "-r",
            "--index-url=x",
            "-e.",
            "git+https://h/x",
            "https://h/x.tar.gz",
            "x @ git+https://h/x",
            "x@git+https://h/x",
            "x @ file:///srv/x",
            "x[y] @ https://h/x.zip",
            "file:x",
            "./x",
            "../x",
            "/srv/x",
            "~/x",
            "sub/dir",
            "sub\\dir",
            "c:x",
            "x.tar.gz",
            "x.WHL",
            "x-1.0.zip[y]",
            "x==1.tgz",
            "x\nhttps://h/x",
            " x",
            "x\t==1",
            "x y",
            "x --global-option=y",
            "x==",
            "x[y",
            "x[-y]",
            "x; y @ https://h/x",
            "x;",
            "é",
        ] {
            assert!(check_pip(&[word.to_owned()]).is_err(), "{word:?}");
        }
    }

    #[test]
    fn addresses_paths_and_aliases_are_refused_as_packages_of_npm() {
        for word in [
            "",
            "-g",
            "--registry=x",
            "owner/repo",
            "@scope",
            "@scope/a/b",
            "@/a",
            "git+ssh://h/x",
            "git@h.example:x/y",
            "https://h/x.tgz",
            "x@https://h/x.tgz",
            "x@npm:y",
            "x@file:y",
            "x@github:o/r",
            "x@owner/repo",
            "x@./y",
            "x@..",
            "x@",
            "./x",
            "/srv/x",
            "~/x",
            "a\\b",
            "x.tgz",
            "x@y.tgz",
            "x.tar.gz",
            "x.TAR",
            " x",
            "x\n",
        ] {
            assert!(check_npm(&[word.to_owned()]).is_err(), "{word:?}");
        }
    }
}
