//! From the text to instructions, with the parser's blind spots refused.

use parse_dockerfile::{Command, Flag, Instruction, ParseIter, Span};

use super::Refusal;

/// A Dockerfile whose instructions are read one after the other.
pub(super) struct Reader<'a> {
    text: &'a str,
    instructions: ParseIter<'a>,
    /// The character that escapes.
    pub(super) escape: char,
}

impl<'a> Reader<'a> {
    /// Reads the directives at the beginning.
    pub(super) fn new(text: &'a str) -> Result<Self, Refusal> {
        let parsed = |error: parse_dockerfile::Error| Refusal::new(error.line().max(1), message(&error));
        let escape = escape(text)?;
        refuse_double_escapes(text, escape)?;
        Ok(Self { text, instructions: parse_dockerfile::parse_iter(text).map_err(parsed)?, escape })
    }

    /// The next instruction.
    pub(super) fn next(&mut self) -> Option<Result<Instruction<'a>, Refusal>> {
        let next = self.instructions.next()?;
        Some(next.map_err(|error| Refusal::new(error.line().max(1), message(&error))))
    }

    /// Line of a place in the text, from 1.
    pub(super) fn line(&self, span: &Span) -> usize {
        line(self.text, span.start)
    }

    /// The words that a command runs: those of a list, or a line for `shell`.
    pub(super) fn command(
        &self,
        line: usize,
        command: &Command<'_>,
        shell: &[String],
    ) -> Result<Vec<String>, Refusal> {
        match command {
            Command::Exec(words) => Ok(words.value.iter().map(|word| word.value.to_string()).collect()),
            Command::Shell(text) => {
                let joined = self.join(line, text.value)?;
                if joined.starts_with("[\"") || joined.starts_with("['") {
                    return Err(Refusal::new(
                        line,
                        "this looks like a list of words, and is none: write [\"WORD\", \"WORD\"] with double quotes",
                    ));
                }
                let mut words = shell.to_vec();
                words.push(joined);
                Ok(words)
            }
            _ => Err(Refusal::new(line, "this form of a command is not known")),
        }
    }

    /// The lines of a command as one: escapes at ends of lines go, and so do comments and empty lines between.
    fn join(&self, line: usize, raw: &str) -> Result<String, Refusal> {
        let mut joined = String::new();
        let mut lines = raw.lines().enumerate();
        while let Some((index, text)) = lines.next() {
            let trimmed = text.trim_start();
            if index > 0 && (trimmed.is_empty() || trimmed.starts_with('#')) {
                continue;
            }
            match text.trim_end().strip_suffix(self.escape) {
                Some(before) => joined.push_str(before),
                None => {
                    joined.push_str(text);
                    if lines.any(|(_, rest)| !rest.trim().is_empty()) {
                        return Err(Refusal::new(
                            line,
                            "where this command ends is not clear: put it on one line",
                        ));
                    }
                    break;
                }
            }
        }
        let joined = joined.trim().to_owned();
        if joined.is_empty() {
            return Err(Refusal::new(line, "there is no command"));
        }
        if joined.split_whitespace().any(is_here_document) {
            return Err(here_document(line));
        }
        Ok(joined)
    }
}

/// The refusal of a here-document.
pub(super) fn here_document(line: usize) -> Refusal {
    Refusal::unsupported(
        line,
        "a here-document (<<)",
        "write the lines into a file and COPY it, or join them with &&",
    )
}

/// True for words such as `<<EOF`, `<<-'END'`, `2<<X`: not for `<<<` and not for shifts.
fn is_here_document(word: &str) -> bool {
    let rest = word.trim_start_matches(|character: char| character.is_ascii_digit());
    rest.strip_prefix("<<").is_some_and(|rest| {
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        rest.starts_with(|first: char| first.is_alphabetic() || matches!(first, '_' | '\'' | '"' | '\\'))
    })
}

/// Refuses flags that are not among `known`; returns those that are.
pub(super) fn flags<'f>(
    line: usize,
    instruction: &str,
    flags: &'f [Flag<'_>],
    known: &[&str],
) -> Result<Vec<(&'f str, &'f str)>, Refusal> {
    let read = |flag: &'f Flag<'_>| {
        let name = &*flag.name.value;
        if !known.contains(&name) {
            let supported = if known.is_empty() {
                format!("{instruction} takes no flags here")
            } else {
                format!("of the flags of {instruction}, --{} are", known.join(" and --"))
            };
            return Err(Refusal::unsupported(line, &format!("--{name}"), &supported));
        }
        let value = flag.value.as_ref().map(|value| &*value.value).filter(|value| !value.is_empty());
        value.map(|value| (name, value)).ok_or_else(|| Refusal::new(line, format!("--{name} needs a value")))
    };
    flags.iter().map(read).collect()
}

fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The parser's message without the place, which it repeats.
fn message(error: &parse_dockerfile::Error) -> String {
    format!("{error:#}")
}

/// The escape that the directives at the beginning choose, once they are all known to us.
fn escape(text: &str) -> Result<char, Refusal> {
    let mut escape = '\\';
    let mut said = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((name, value)) = line.strip_prefix('#').and_then(|line| line.split_once('=')) else { break };
        let name = name.trim().to_ascii_lowercase();
        if said.contains(&name) {
            return Err(Refusal::new(index + 1, format!("the directive `{name}` is there twice")));
        }
        said.push(name.clone());
        match (&*name, value.trim()) {
            ("escape", "`") => escape = '`',
            ("escape", "\\") => {}
            ("escape", _) => return Err(Refusal::new(index + 1, "the escape is a \\ or a `")),
            ("syntax", value) if !value.starts_with("docker/dockerfile:") => {
                return Err(Refusal::unsupported(
                    index + 1,
                    &format!("the syntax {value}"),
                    "docker/dockerfile is read here, without a frontend being fetched",
                ));
            }
            ("syntax" | "check", _) => {}
            _ => break,
        }
    }
    Ok(escape)
}

/// Two escapes at the end of a line are one that continues it, or none: builders do not agree.
fn refuse_double_escapes(text: &str, escape: char) -> Result<(), Refusal> {
    let double: String = [escape, escape].iter().collect();
    let found = text
        .lines()
        .position(|line| !line.trim_start().starts_with('#') && line.trim_end().ends_with(&double));
    found.map_or(Ok(()), |index| {
        Err(Refusal::new(
            index + 1,
            format!("a line that ends with {double} means different things to different builders"),
        ))
    })
}
