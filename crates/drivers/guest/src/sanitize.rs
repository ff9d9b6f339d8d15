//! Texts of the guest, made harmless.

/// Most characters of a text of the guest that are kept.
const MOST: usize = 4096;

/// Cuts a text to a bearable length and replaces control characters, so that it can be shown on a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().take(MOST).map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// A path of the guest as text; the exact bytes as well where they are not UTF-8.
pub(crate) fn path(bytes: &[u8]) -> (String, Option<Vec<u8>>) {
    let bytes = &bytes[..bytes.len().min(MOST)];
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
        assert_eq!(clean(&"x".repeat(100_000)).len(), MOST);
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
                // The exact bytes are there wherever the text is not them.
                let kept = exact.as_deref().unwrap_or(text.as_bytes());
                assert!(bytes.starts_with(kept) && kept.len() == bytes.len().min(MOST));
                if exact.is_some() { "bytes" } else { "text" }
            });
    }

    #[test]
    fn odd_paths_keep_their_bytes() {
        assert_eq!(path(b"/a\nb"), ("/a\nb".to_owned(), None));
        assert_eq!(path(b"/\xff").1, Some(b"/\xff".to_vec()));
    }
}
