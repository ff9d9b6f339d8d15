//! Text that a guest or another user chose, made harmless for a terminal.
//!
//! Everything that such text can do to a terminal, or to how its neighbours are read, is shown as an escape instead:
//! control characters (C0, DEL and C1, so every escape sequence), and the format characters that reorder, join or hide
//! (bidirectional controls such as U+202E, zero-width characters, tags). All output for people passes through here:
//! tables, messages, progress, errors, consoles on a terminal.

use std::fmt::Write as _;

/// True if a character controls the terminal instead of being shown.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Unicode 16, general category Cf (format), and the two separators that end lines or paragraphs.
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

fn escape(text: &str, keeps: impl Fn(char) -> bool, into: &mut String) {
    for c in text.chars() {
        if !acts(c) || keeps(c) {
            into.push(c);
        } else {
            into.extend(c.escape_default());
        }
    }
}

/// One line: a cell of a table, a name, a message. Newlines and tabs are shown as `\n` and `\t`.
pub(crate) fn line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    escape(text, |_| false, &mut shown);
    shown
}

/// Several lines: newlines and tabs stay what they are.
pub(crate) fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    escape(text, |c| c == '\n' || c == '\t', &mut shown);
    shown
}

/// Bytes of a guest, such as its console: line ends and tabs stay, what is no UTF-8 is shown as `\xNN`.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        // A carriage return elsewhere would write over what is on its line.
        for (index, part) in chunk.valid().split("\r\n").enumerate() {
            if index > 0 {
                shown.push('\n');
            }
            escape(part, |c| c == '\n' || c == '\t', &mut shown);
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// JSON text in which every control character is written as `\uXXXX`, an equal value for every parser. JSON has such
/// characters inside strings only, line ends between values excepted.
pub(crate) fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if !acts(c) || c == '\n' {
            shown.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[2J\x07\u{9b}31m\u{7f}b\u{202e}c\u{2066}d\u{200b}\u{e0041}\ne\t\r";

    #[test]
    fn a_terminal_cannot_be_taken_over() {
        let shown = line(HOSTILE);
        assert_eq!(shown, r"a\u{1b}[2J\u{7}\u{9b}31m\u{7f}b\u{202e}c\u{2066}d\u{200b}\u{e0041}\ne\t\r");
        assert!(!shown.chars().any(acts));
        assert_eq!(line("naïve 文字 🦀 \"q\" \\"), "naïve 文字 🦀 \"q\" \\");
        assert_eq!(lines("a\n\tb\x1b"), "a\n\tb\\u{1b}");
    }

    #[test]
    fn a_console_keeps_its_lines_only() {
        assert_eq!(
            bytes(b"one\r\ntwo\rover\xff\xc3\n\x1b]0;title\x07"),
            "one\ntwo\\rover\\xff\\xc3\n\\u{1b}]0;title\\u{7}"
        );
        // A C1 control as one byte and as UTF-8.
        assert_eq!(bytes(b"\x9b2J\xc2\x9b2J"), "\\x9b2J\\u{9b}2J");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "文字"] });
        let shown = json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!shown.chars().any(|c| acts(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn any_text_of_others() {
        use microvm_fuzz::Fuzz;
        let target = Fuzz::new("visible").seed(HOSTILE.as_bytes()).seed(*b"one\r\ntwo\rover\xff\xc3\n\x9b2J");
        target.words(&[b"\x1b[", b"\xc2\x9b", "\u{202e}".as_bytes(), b"\r\n"]).run(|given| {
            let text = String::from_utf8_lossy(given);
            let stays = |c: char| c == '\n' || c == '\t';
            assert!(!line(&text).chars().any(acts));
            assert!(!lines(&text).chars().any(|c| acts(c) && !stays(c)));
            assert!(!bytes(given).chars().any(|c| acts(c) && !stays(c)));
            let shown = json(&serde_json::to_string(&text).unwrap());
            assert!(!shown.chars().any(acts));
            assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
            // What is harmless is not changed, so that names can be copied from a table.
            if !text.chars().any(acts) {
                assert_eq!(line(&text), text);
            }
            if text.chars().any(acts) { "escaped" } else { "plain" }
        });
    }
}
