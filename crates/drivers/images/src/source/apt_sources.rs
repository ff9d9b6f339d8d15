//! Picks the distribution's own entries from the host's package sources.
//!
//! So no address of a mirror is ever written in this program: images come from where the host itself gets its packages,
//! checked with the same keys. A release that the host has no entry for comes from the addresses of the host's own release:
//! an archive of Debian's holds all of them (so a Debian 13 builds images of Debian 12).

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::names_in;
use microvm_ports::StorageError;

const DIRECTORY: &str = "/etc/apt";
/// The keyring of the distribution's archive, as entries name it.
const KEYRING: &str = "debian-archive-";
/// The component without which there is no system.
const COMPONENT: &str = "main";
/// Releases that have no companions (`-updates`, `-security`).
const WITHOUT_COMPANIONS: [&str; 3] = ["sid", "unstable", "experimental"];

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

/// The entries of this host that have `suite`, or else those of the host's own release, with `suite` in its place.
pub(crate) fn of_host(suite: &str) -> Result<Vec<Entries>, StorageError> {
    let directory = Utf8Path::new(DIRECTORY);
    let mut files: Vec<Utf8PathBuf> = vec![directory.join("sources.list")];
    let parts = directory.join("sources.list.d");
    if parts.is_dir() {
        files.extend(names_in(&parts)?.into_iter().map(|name| parts.join(name)));
    }
    let mut texts = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(file).map_err(io_error("reading", file))?;
        texts.push((file.extension().unwrap_or_default(), text));
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let found = choose(&texts, suite, own_release(&release));
    if found.is_empty() {
        return Err(bad_input(
            format!("the suite `{suite}`"),
            "the package sources of this host have neither it nor Debian's archive; see /etc/apt/sources.list.d",
        ));
    }
    Ok(found)
}

/// Entries for `suite` of files, each given by its extension and its text.
fn choose(texts: &[(&str, String)], suite: &str, own: Option<&str>) -> Vec<Entries> {
    let entries = |named: &str| -> Vec<Entries> {
        let of_file = |(extension, text): &(&str, String)| match *extension {
            "list" => Some(Entries::Lines(lines(text, named, suite))),
            "sources" => Some(Entries::Stanzas(stanzas(text, named, suite))),
            _ => None,
        };
        texts.iter().filter_map(of_file).filter(|entries| !entries.is_empty()).collect()
    };
    let found = entries(suite);
    match own {
        Some(own) if found.is_empty() => entries(own),
        _ => found,
    }
}

/// Release of a host that is Debian itself, by the text of its `os-release`: other distributions have archives of their own.
fn own_release(text: &str) -> Option<&str> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    (field("ID") == Some("debian")).then(|| field("VERSION_CODENAME")).flatten()
}

/// The suite that stands for `candidate`, one of `named` or its companions (`-updates`, `-security`), when `suite` takes
/// the place of `named`; `None` if it is another.
fn renamed(candidate: &str, named: &str, suite: &str) -> Option<String> {
    let rest = candidate.strip_prefix(named)?;
    match rest {
        "" => Some(suite.to_owned()),
        // Releases before Debian 11 have `/updates` for their security updates.
        "-updates" | "-security" | "/updates" if !WITHOUT_COMPANIONS.contains(&suite) => {
            Some(format!("{suite}{rest}"))
        }
        _ => None,
    }
}

fn ours(signed_by: Option<&str>) -> bool {
    signed_by.is_none_or(|value| value.contains(KEYRING))
}

/// The lines that have `named`, with `suite` in its place.
fn lines(text: &str, named: &str, suite: &str) -> String {
    text.lines().filter_map(|line| kept_line(line, named, suite)).collect()
}

fn kept_line(line: &str, named: &str, suite: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((options, rest)) => (options, rest),
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace();
    let (address, candidate) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    let suite = renamed(candidate, named, suite)?;
    if !components.contains(&COMPONENT) || !ours(signed_by) {
        return None;
    }
    let options = if options.is_empty() { String::new() } else { format!("[{options}] ") };
    Some(format!("deb {options}{address} {suite} {}\n", components.join(" ")))
}

/// The stanzas that have `named`, with `suite` in its place.
fn stanzas(text: &str, named: &str, suite: &str) -> String {
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
        let suites: Vec<String> = field("Suites")
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|candidate| renamed(candidate, named, suite))
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
        let kept = lines(text, "bookworm", "bookworm");
        assert_eq!(kept.lines().count(), 2, "{kept}");
        assert!(kept.contains("contrib") && kept.contains("-security"));
    }

    #[test]
    fn only_the_distributions_own_stanzas_are_kept() {
        let text = "Types: deb\n# a comment: with a colon\nURIs: http://m.test/debian\nSuites: bookworm bookworm-updates trixie\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                    Types: deb\nURIs: http://o.test\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb\nURIs: http://o.test\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/other.gpg\n";
        let kept = stanzas(text, "bookworm", "bookworm");
        assert!(
            kept.contains("Suites: bookworm bookworm-updates\n")
                && !kept.contains("o.test")
                && !kept.contains("trixie"),
            "{kept}"
        );
    }

    /// A Debian 13 has no entry for Debian 12, but its archive has Debian 12.
    #[test]
    fn a_release_without_entries_comes_from_the_archive_of_the_hosts_own() {
        let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let stanza = |suites| {
            format!(
                "Types: deb\nURIs: http://m.test/debian\nSuites: {suites}\nComponents: main\nSigned-By: {key}\n"
            )
        };
        let texts = [
            ("list", format!("deb [signed-by={key}] http://m.test/security trixie-security main\n")),
            ("sources", stanza("trixie trixie-updates trixie-backports")),
        ];
        let older = [
            Entries::Lines(format!("deb [signed-by={key}] http://m.test/security bookworm-security main\n")),
            Entries::Stanzas(stanza("bookworm bookworm-updates") + "\n"),
        ];
        assert_eq!(choose(&texts, "bookworm", Some("trixie")), older);
        assert_eq!(choose(&texts, "sid", Some("trixie")), [Entries::Stanzas(stanza("sid") + "\n")]);
        assert_eq!(choose(&texts, "bookworm", None), []);
    }

    #[test]
    fn only_debian_itself_has_debians_archive() {
        let release = |id| format!("PRETTY_NAME=\"x\"\nVERSION_CODENAME=trixie\nID={id}\nID_LIKE=debian\n");
        assert_eq!(own_release(&release("debian")), Some("trixie"));
        assert_eq!(own_release(&release("ubuntu")), None);
        assert_eq!(own_release(""), None);
    }
}
