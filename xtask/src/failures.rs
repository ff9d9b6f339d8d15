//! What failing tests said, told once more at the end: an answer should not have to be looked for in ten thousand lines.

/// Most lines that are kept of one panic, of which most say `left` and `right`.
const LINES: usize = 12;
/// Most lines that are kept in all.
const LINES_MAX: usize = 120;

/// Reads nextest's standard error line by line.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    lines: Vec<String>,
    /// The test whose output is being read, told before its first panic.
    test: Option<String>,
    /// Lines that still belong to a panic.
    rest: usize,
}

impl Failures {
    pub(crate) fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            Some(&("FAIL" | "TIMEOUT" | "ABORT" | "SIGABRT" | "SIGSEGV" | "LEAK-FAIL"))
                if words.get(1).is_some_and(|word| word.starts_with('[')) =>
            {
                self.test = Some(line.trim().to_owned());
                self.rest = 0;
            }
            Some(&("PASS" | "SLOW")) => (self.test, self.rest) = (None, 0),
            Some(&"stack") if words.get(1) == Some(&"backtrace:") => self.rest = 0,
            _ if line.contains("panicked at") => {
                self.rest = LINES;
                if let Some(test) = self.test.take() {
                    self.keep(&test);
                }
                self.keep(line);
            }
            _ if self.rest > 0 => {
                self.rest -= 1;
                self.keep(line);
            }
            _ => {}
        }
    }

    fn keep(&mut self, line: &str) {
        if self.lines.len() < LINES_MAX {
            // A document of a whole machine can stand in one line.
            self.lines.push(line.chars().take(400).collect());
        }
    }

    /// What was found, a line each.
    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_failure_are_kept_and_no_backtrace() {
        let mut failures = Failures::default();
        for line in [
            "        PASS [   0.006s] (1/3) a one",
            "        FAIL [   1.728s] (2/3) a two",
            "  stderr ───",
            "    seed 4",
            "    thread 'two' (9758) panicked at a.rs:170:5:",
            "    assertion `left == right` failed",
            "    stack backtrace:",
            "       0: __rustc::rust_begin_unwind",
            "        PASS [   0.006s] (3/3) a three",
        ] {
            failures.read(line);
        }
        assert_eq!(
            failures.lines(),
            [
                "FAIL [   1.728s] (2/3) a two",
                "    thread 'two' (9758) panicked at a.rs:170:5:",
                "    assertion `left == right` failed"
            ]
        );
    }
}
