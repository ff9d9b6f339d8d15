//! Durations as people write them.

use std::time::Duration;

/// Reads `30`, `30s`, `500ms`, `5m`, `2h` or `1d`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let wrong = || format!("`{text}` is not a duration: write for example 500ms, 30s, 5m or 2h");
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let milliseconds = match &text[digits..] {
        "ms" => Some(count),
        "" | "s" => count.checked_mul(1000),
        "m" => count.checked_mul(60_000),
        "h" => count.checked_mul(3_600_000),
        "d" => count.checked_mul(86_400_000),
        _ => return Err(wrong()),
    };
    match milliseconds {
        Some(0) => Err(format!("`{text}` is no time at all: leave the option out for no limit")),
        // Ten years; also keeps every sum of times far from overflow.
        Some(milliseconds) if milliseconds <= 315_360_000_000 => Ok(Duration::from_millis(milliseconds)),
        _ => Err(format!("`{text}` is too long: ten years are the most")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in
            [("30", 30_000), ("30s", 30_000), ("500ms", 500), ("5m", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "1.5s", "0", "5 m", "99999999999999999999", "9999999d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = parse(&text);
        }
    }
}
