//! Patterns of names and paths: `*`, `?`, `[a-z]`, `\` before a character that means itself, and `**` for any directories.
//! Names are bytes: `?` and `[…]` stand for one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use globset::{GlobBuilder, GlobMatcher};

/// Most bytes of one pattern.
const PATTERN_MAX: usize = 4096;
/// Characters with a meaning.
pub(super) const SPECIAL: [char; 4] = ['*', '?', '[', '\\'];

/// A pattern that was understood.
#[derive(Debug)]
pub(super) struct Pattern(GlobMatcher);

impl Pattern {
    /// Reads a pattern without slashes at its ends. The error says what is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.len() > PATTERN_MAX {
            return Err(format!("it has {} bytes; at most {PATTERN_MAX} are possible", text.len()));
        }
        if text.split('/').any(|part| part.contains("**") && part != "**") {
            return Err(
                "`**` stands for whole directories: nothing else can be between its slashes".to_owned()
            );
        }
        let glob =
            GlobBuilder::new(&without_choices(text)).literal_separator(true).backslash_escape(true).build();
        glob.map(|glob| Self(glob.compile_matcher())).map_err(|error| error.kind().to_string())
    }

    /// True if it stands for this path.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        self.0.is_match(OsStr::from_bytes(path))
    }
}

/// Braces mean themselves, as in every `.dockerignore`; for the library they are choices.
fn without_choices(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let (mut escaped, mut class) = (false, false);
    for character in text.chars() {
        let means_itself = escaped || class;
        if matches!(character, '{' | '}') && !means_itself {
            plain.push('\\');
        }
        escaped = character == '\\' && !means_itself;
        class = match character {
            '[' if !means_itself => true,
            ']' if !escaped => false,
            _ => class,
        };
        plain.push(character);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_a_dockerignore() {
        for (pattern, path, expected) in [
            ("*.py", "a.py", true),
            ("*.py", "sub/a.py", false),
            ("**/*.py", "a.py", true),
            ("**/*.py", "sub/deep/a.py", true),
            ("a/**", "a/b/c", true),
            ("a/**/c", "a/c", true),
            ("?", "x", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("{{name}}", "{{name}}", true),
            ("{a,b}", "a", false),
            ("[{]", "{", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(path.as_bytes()), expected, "{pattern} {path}");
        }
        for bad in ["[a", "a**b", "[z-a]", &"a".repeat(5000)] {
            Pattern::new(bad).unwrap_err();
        }
    }
}
