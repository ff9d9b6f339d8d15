//! Commands as one text or as words, read within their longest length, so that what is refused costs little.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Longest command in bytes, a NUL behind each word counted: what no server takes more of.
pub const COMMAND_MAX: usize = 1 << 20;

/// A command as one text (given to `sh -c`) or as program and arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CommandLine {
    /// For `sh -c`: at most 1 MiB. The shell reads one that is longer than an argument may be from its standard input, and its
    /// commands find nothing there.
    Shell(String),
    /// Program and arguments, no shell: at most 1 MiB, 131,071 bytes each.
    Arguments(Vec<String>),
}

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

/// Reads a text, or words. A derived reader of either would keep all of a body before it looks at its length.
struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = CommandLine;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command: a text for the shell, or a list of program and arguments")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<CommandLine, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<CommandLine, E> {
        // The server refuses it by the operator's limit, which may be lower, and names that.
        Ok(CommandLine::Shell(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<CommandLine, A::Error> {
        let (mut all, mut bytes) = (Vec::new(), 0);
        while let Some(word) = words.next_element::<String>()? {
            bytes += word.len() + 1;
            if bytes > COMMAND_MAX {
                return Err(Error::custom(format_args!(
                    "command: it has more than {COMMAND_MAX} bytes, with a NUL behind each word: copy a file into the VM and run that"
                )));
            }
            all.push(word);
        }
        Ok(CommandLine::Arguments(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_texts_or_words_and_end_at_their_longest() {
        let read = |json: &str| serde_json::from_str::<CommandLine>(json).map_err(|error| error.to_string());
        assert_eq!(read(r#""a b""#).unwrap(), CommandLine::Shell("a b".to_owned()));
        assert_eq!(
            read(r#"["a","b"]"#).unwrap(),
            CommandLine::Arguments(vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(read("[]").unwrap(), CommandLine::Arguments(Vec::new()));
        for wrong in ["1", "null", r#"{"a":1}"#] {
            assert!(read(wrong).unwrap_err().contains("expected a command: a text for the shell"), "{wrong}");
        }
        assert!(read(r#"["a",1]"#).unwrap_err().contains("expected a string"));
        let words = |count: usize| format!("[{}\"\"]", "\"\",".repeat(count - 1));
        assert!(read(&words(COMMAND_MAX)).is_ok());
        // What comes behind is not read: it is no JSON.
        let more = format!("{} %", &words(COMMAND_MAX + 1)[..3 * (COMMAND_MAX + 1)]);
        assert!(read(&more).unwrap_err().contains("more than 1048576 bytes"));
    }
}
