//! Texts of the guest, made harmless.

/// Most characters of a text of the guest that are kept.
const MOST: usize = 4096;

/// Cuts a text to a bearable length, and replaces control characters, so that it can be shown on a terminal. One that was
/// cut ends with `…`.
pub(crate) fn clean(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { '\u{fffd}' } else { letter };
    shorten(text, MOST).chars().map(plain).collect()
}

/// At most `most` characters; the last is `…` where some are left out.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    // As many bytes are no more characters.
    if text.len() <= most || text.chars().nth(most).is_none() {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(std::iter::once('…')).collect()
}

/// A path of the guest as text; the exact bytes as well where they are not UTF-8. No call of Linux takes a path that is longer
/// than is kept here: such a path ends with `…`, has no exact bytes, and cannot be mistaken for another file's.
pub(crate) fn path(bytes: &[u8]) -> (String, Option<Vec<u8>>) {
    if bytes.len() > MOST {
        return (format!("{}…", String::from_utf8_lossy(&bytes[..MOST - 1])), None);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(bytes.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_endless_texts_are_tamed() {
        assert_eq!(clean("a\x1b[2Jb"), "a\u{fffd}[2Jb");
        let cut = clean(&"x".repeat(100_000));
        assert!(cut.chars().count() == MOST && cut.ends_with("xx…"), "a text that was cut does not say so");
        assert_eq!(clean(&"ä".repeat(MOST)), "ä".repeat(MOST));
        let (cut, exact) = path(&[b'/'; 5000]);
        assert!(cut.ends_with("//…") && exact.is_none(), "a path that was cut names another file");
    }

    #[test]
    fn texts_of_a_hostile_guest() {
        use microvm_fuzz::Fuzz;
        Fuzz::new("texts")
            .seed(*b"/a\x1b[2J\xff")
            .seed("ä\u{9b}\u{202e}".as_bytes())
            .memory(1 << 20, 16)
            .run(|bytes| {
                let cleaned = clean(&String::from_utf8_lossy(bytes));
                assert!(!cleaned.chars().any(char::is_control) && cleaned.chars().count() <= MOST);
                assert_eq!(clean(&cleaned), cleaned);
                let (text, exact) = path(bytes);
                // The exact bytes are there wherever the text is not them, unless it says that it was cut.
                let kept = exact.as_deref().unwrap_or(text.as_bytes());
                assert!(kept == bytes || bytes.len() > MOST && text.ends_with('…') && exact.is_none());
                if exact.is_some() { "bytes" } else { "text" }
            });
    }

    #[test]
    fn odd_paths_keep_their_bytes() {
        assert_eq!(path(b"/a\nb"), ("/a\nb".to_owned(), None));
        assert_eq!(path(b"/\xff").1, Some(b"/\xff".to_vec()));
    }
}
