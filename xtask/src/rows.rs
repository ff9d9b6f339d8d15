//! Tests that documents name exist: a row of the table of features is shown by a test, and a test that was renamed or
//! removed takes its row with it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use crate::{host, words};

/// The document whose last column names tests.
const DOCUMENT: &str = "docs/reference/features.md";

/// Checks that every test named in the document is a function of this repository.
pub(crate) fn check() -> Result<()> {
    let text = std::fs::read_to_string(host::repository().join(DOCUMENT))
        .with_context(|| format!("{DOCUMENT} could not be read"))?;
    let mut sources = String::new();
    for path in words::committed()?.into_iter().filter(|path| path.ends_with(".rs")) {
        sources.push_str(&std::fs::read_to_string(host::repository().join(&path)).unwrap_or_default());
    }
    let there = functions(&sources);
    let (named, lost): (Vec<&str>, Vec<&str>) = tests(&text).partition(|test| there.contains(test));
    if named.is_empty() {
        bail!("{DOCUMENT} names no test");
    }
    if lost.is_empty() {
        Ok(())
    } else {
        bail!("{DOCUMENT} names tests that are not there: {}", lost.join(", "))
    }
}

/// Names of tests in the last cell of each row: words in backticks with an underscore and nothing but lower-case letters,
/// digits and underscores. Commands and files, which also stand in backticks, have other characters.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|')?.rsplit('|').next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|word| {
            word.contains('_')
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
}

/// Names of all functions in `source`.
fn functions(source: &str) -> BTreeSet<&str> {
    source
        .split("fn ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn tests_are_told_from_commands_and_found_among_functions() {
        let document = "| row | what | shown by |\n|---|---|---|\n| A1 | `not_this` | `a_test_of_it`, `microvm ls --all_of`, `a.b_c` |\ntext `none_of_it`\n";
        assert_eq!(super::tests(document).collect::<Vec<_>>(), ["a_test_of_it"]);
        let found = super::functions("#[test]\nfn a_test_of_it() {}\nasync fn more<T>(x: T) {}");
        assert!(found.contains("a_test_of_it") && found.contains("more") && !found.contains("test"));
    }
}
