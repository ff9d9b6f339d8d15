//! What of a context is left out: the lines of a `.dockerignore`.

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;

use super::pattern::Pattern;

/// Most patterns of one step.
const PATTERNS_MAX: usize = 2_000;

/// Patterns in their order; the last that stands for a path, or for a directory above it, decides.
#[derive(Debug, Default)]
pub(super) struct Ignored(Vec<Line>);

#[derive(Debug)]
struct Line {
    pattern: Pattern,
    /// True if it takes back in.
    back: bool,
}

impl Ignored {
    /// Reads patterns. `what` names the step in errors.
    pub(super) fn new(what: &str, lines: &[String]) -> Result<Self, StorageError> {
        if lines.len() > PATTERNS_MAX {
            return Err(bad_input(what, format!("more than {PATTERNS_MAX} patterns of what is left out")));
        }
        let read = |line: &String| {
            let bad = |why: String| {
                bad_input(what, format!("the pattern `{}` of what is left out: {why}", line.escape_debug()))
            };
            let text = line.trim();
            let (text, back) = text.strip_prefix('!').map_or((text, false), |rest| (rest.trim(), true));
            if text.is_empty() {
                return Err(bad("it names nothing".to_owned()));
            }
            let text = clean(text).map_err(&bad)?;
            Ok(Line { pattern: Pattern::new(&text).map_err(bad)?, back })
        };
        Ok(Self(lines.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// True if a path (below the context, without `.` and `..`) is left out.
    pub(super) fn leaves_out(&self, path: &[u8]) -> bool {
        let mut out = false;
        for line in &self.0 {
            // A line that says what is so already need not be asked.
            if line.back == out && above(path).any(|part| line.pattern.matches(part)) {
                out = !line.back;
            }
        }
        out
    }

    /// True if something below a directory that is left out may be taken back in.
    pub(super) fn takes_back(&self) -> bool {
        self.0.iter().any(|line| line.back)
    }
}

/// A path and the directories above it, the nearest last.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(path), |path| {
        path.iter().rposition(|byte| *byte == b'/').map(|at| &path[..at])
    })
    .filter(|path| !path.is_empty())
}

/// A pattern without `.`, `..` and superfluous slashes.
fn clean(text: &str) -> Result<String, String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part != ".." {
            parts.push(part);
        } else if parts.pop().is_none() {
            return Err("it leaves the context".to_owned());
        }
    }
    if parts.is_empty() {
        // `.` and `/` stand for everything.
        return Ok("**".to_owned());
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use microvm_fuzz::Fuzz;

    use super::*;

    fn ignored(lines: &[&str]) -> Ignored {
        Ignored::new("x", &lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_last_line_that_fits_decides_also_for_what_is_below() {
        let lines = ignored(&["*", "!src", "src/*.o", "!src/keep.o", " /docs/ ", "node_modules/../tmp"]);
        for (path, expected) in [
            ("README", true),
            ("src", false),
            ("src/a.c", false),
            ("src/deep/a.c", false),
            ("src/a.o", true),
            ("src/keep.o", false),
            ("docs/x", true),
            ("tmp/x", true),
        ] {
            assert_eq!(lines.leaves_out(path.as_bytes()), expected, "{path}");
        }
        assert!(lines.takes_back() && !ignored(&["a"]).takes_back());
        assert!(!ignored(&["b"]).leaves_out(b"a/b") && ignored(&["**/b"]).leaves_out(b"a/b/c"));
        assert!(ignored(&["."]).leaves_out(b"a") && !ignored(&[]).leaves_out(b"a"));
        for bad in ["../x", "[", "!a**", "!", ""] {
            assert!(
                Ignored::new("step", &[bad.to_owned()]).unwrap_err().to_string().contains("step"),
                "{bad}"
            );
        }
    }

    #[test]
    fn any_patterns_of_a_dockerignore() {
        let target = Fuzz::new("dockerignore").seed(*b"*\n!src\n**/*.[a-c]\n{\\x}\n").memory(64 << 20, 1_024);
        target.run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<String> = text.lines().take(20).map(str::to_owned).collect();
            match Ignored::new("x", &lines) {
                Ok(ignored) => format!("{} {}", ignored.leaves_out(bytes), ignored.leaves_out(b"src/a.b")),
                Err(error) => error.to_string(),
            }
        });
    }
}
