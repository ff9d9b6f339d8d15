//! Texts of callers in messages.

/// Most characters of such a text that a message repeats: it goes to logs and terminals, whatever a caller sends.
const SHOWN_MAX: usize = 100;

/// A text as it is repeated in a message: its beginning, if it is long.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByteSize, Name, Share, VmId};

    #[test]
    fn messages_repeat_the_beginning_only() {
        assert_eq!(shown("short ä"), "short ä");
        assert_eq!(shown(&"ä".repeat(101)), "ä".repeat(100) + "…");
        let long = "x y".repeat(100_000);
        let messages = [
            long.parse::<Name>().unwrap_err().to_string(),
            long.parse::<VmId>().unwrap_err().to_string(),
            long.parse::<ByteSize>().unwrap_err().to_string(),
            "9".repeat(100_000).parse::<ByteSize>().unwrap_err().to_string(),
            long.parse::<Share>().unwrap_err().to_string(),
            format!("/a:{long}").parse::<Share>().unwrap_err().to_string(),
            format!("/a:/{long}").parse::<Share>().unwrap_err().to_string(),
        ];
        for message in messages {
            assert!(message.len() < 300 && message.contains('…'), "{message}");
        }
    }
}
