//! Picks the distribution's own entries from the host's package sources.
//!
//! So no address of a mirror is ever written in this program: images come from where the host itself gets its packages,
//! checked with the same keys.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;

use crate::base::error::{bad_input, io_error};
use crate::base::files::names_in;

const DIRECTORY: &str = "/etc/apt";
/// The keyring of the distribution's archive, as entries name it.
const KEYRING: &str = "debian-archive-";
/// The component without which there is no system.
const COMPONENT: &str = "main";

/// Entries of one file, in the form of that file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entries {
    /// One line each.
    Lines(String),
    /// Stanzas ("deb822").
    Stanzas(String),
}

impl Entries {
    const fn is_empty(&self) -> bool {
        let (Self::Lines(text) | Self::Stanzas(text)) = self;
        text.is_empty()
    }
}

/// The entries of this host that have `suite`.
pub(crate) fn of_host(suite: &str) -> Result<Vec<Entries>, StorageError> {
    let directory = Utf8Path::new(DIRECTORY);
    let mut files: Vec<Utf8PathBuf> = vec![directory.join("sources.list")];
    let parts = directory.join("sources.list.d");
    if parts.is_dir() {
        files.extend(names_in(&parts)?.into_iter().map(|name| parts.join(name)));
    }
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(file).map_err(io_error("reading", file))?;
        let entries = match file.extension() {
            Some("list") => Entries::Lines(lines(&text, suite)),
            Some("sources") => Entries::Stanzas(stanzas(&text, suite)),
            _ => continue,
        };
        if !entries.is_empty() {
            found.push(entries);
        }
    }
    if found.is_empty() {
        return Err(bad_input(
            format!("the suite `{suite}`"),
            "the package sources of this host do not have it; see /etc/apt/sources.list.d",
        ));
    }
    Ok(found)
}

/// Whether an entry's suite is the one asked for, or one of its companions (`-updates`, `-security`).
fn fits(candidate: &str, suite: &str) -> bool {
    candidate
        .strip_prefix(suite)
        .is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

fn ours(signed_by: Option<&str>) -> bool {
    signed_by.is_none_or(|value| value.contains(KEYRING))
}

fn lines(text: &str, suite: &str) -> String {
    let keep = |line: &&str| {
        let Some(rest) = line.trim().strip_prefix("deb ") else { return false };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let mut words = rest.split_whitespace().skip(1);
        words.next().is_some_and(|candidate| fits(candidate, suite))
            && words.any(|word| word == COMPONENT)
            && ours(signed_by)
    };
    text.lines().filter(keep).fold(String::new(), |all, line| all + line + "\n")
}

fn stanzas(text: &str, suite: &str) -> String {
    let mut kept = String::new();
    for stanza in text.split("\n\n") {
        let fields: Vec<(&str, &str)> = stanza
            .lines()
            .filter(|line| !line.starts_with(['#', ' ', '\t']))
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let field = |name: &str| {
            fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
        };
        let suites: Vec<&str> = field("Suites")
            .unwrap_or_default()
            .split_whitespace()
            .filter(|candidate| fits(candidate, suite))
            .collect();
        let enabled = field("Enabled").is_none_or(|value| value != "no");
        let binary = field("Types").unwrap_or_default().split_whitespace().any(|kind| kind == "deb");
        let main = field("Components")
            .unwrap_or_default()
            .split_whitespace()
            .any(|component| component == COMPONENT);
        let (Some(addresses), true) = (field("URIs"), enabled && binary && main && !suites.is_empty()) else {
            continue;
        };
        if !ours(field("Signed-By")) {
            continue;
        }
        kept += &format!(
            "Types: deb\nURIs: {addresses}\nSuites: {}\nComponents: {COMPONENT}\n",
            suites.join(" ")
        );
        if let Some(keyring) = field("Signed-By") {
            kept += &format!("Signed-By: {keyring}\n");
        }
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_distributions_own_lines_are_kept() {
        let text = "deb http://m.test/debian bookworm main contrib\n\
                    deb-src http://m.test/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.test/s bookworm-security main\n\
                    deb [signed-by=/k/other.gpg] http://o.test bookworm main\n\
                    deb http://o.test cloud-bookworm main\n# deb http://m.test bookworm main\n";
        let kept = lines(text, "bookworm");
        assert_eq!(kept.lines().count(), 2, "{kept}");
        assert!(kept.contains("contrib") && kept.contains("-security"));
    }

    #[test]
    fn only_the_distributions_own_stanzas_are_kept() {
        let text = "Types: deb\n# a comment: with a colon\nURIs: http://m.test/debian\nSuites: bookworm bookworm-updates trixie\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                    Types: deb\nURIs: http://o.test\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb\nURIs: http://o.test\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/other.gpg\n";
        let kept = stanzas(text, "bookworm");
        assert!(
            kept.contains("Suites: bookworm bookworm-updates\n")
                && !kept.contains("o.test")
                && !kept.contains("trixie"),
            "{kept}"
        );
    }
}
