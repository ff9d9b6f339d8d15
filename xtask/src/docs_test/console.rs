//! Blocks ```` ```console ```` of a Markdown file: commands after `$ `, continued after `> `, and the output that follows.

/// One command with the output that the text promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    /// Number of the line of the file that it begins in, from 1.
    pub(super) line: usize,
    /// Text for the shell.
    pub(super) command: String,
    /// Lines of standard output and standard error.
    pub(super) output: Vec<String>,
}

/// Stands for any text of a line; alone on a line for any number of lines.
const ANYTHING: &str = "…";

/// All commands of a text, in their order.
pub(super) fn read(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    // Inside a block: what its lines are indented by, as in lists.
    let mut block: Option<usize> = None;
    let mut first = 0;
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        let Some(indent) = block else {
            if bare.trim_end() == "```console" {
                block = Some(line.len() - bare.len());
                first = examples.len();
            }
            continue;
        };
        if bare.trim_end() == "```" {
            block = None;
            continue;
        }
        let line = line.get(indent..).unwrap_or(bare);
        if let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example { line: number + 1, command: command.to_owned(), output: Vec::new() });
        } else if let Some(example) = examples.get_mut(first..).and_then(<[Example]>::last_mut) {
            match line.strip_prefix("> ").or_else(|| (line == ">").then_some("")) {
                Some(more) if example.output.is_empty() => {
                    example.command.push('\n');
                    example.command.push_str(more);
                }
                _ => example.output.push(line.trim_end().to_owned()),
            }
        }
    }
    examples
}

/// True if an output is what an example promises.
pub(super) fn matches(promised: &[String], output: &[&str]) -> bool {
    match promised.split_first() {
        None => output.is_empty(),
        Some((line, rest)) if line == ANYTHING => {
            (0..=output.len()).any(|taken| matches(rest, &output[taken..]))
        }
        Some((line, rest)) => output
            .split_first()
            .is_some_and(|(first, others)| line_matches(line, first) && matches(rest, others)),
    }
}

/// True if the pieces between the wildcards stand in a line in their order, the first and the last at its ends.
fn line_matches(promised: &str, line: &str) -> bool {
    let line = line.trim_end();
    let Some((start, mut rest)) = promised.split_once(ANYTHING) else { return promised == line };
    let Some(mut line) = line.strip_prefix(start) else { return false };
    while let Some((piece, after)) = rest.split_once(ANYTHING) {
        let Some(at) = line.find(piece) else { return false };
        line = &line[at + piece.len()..];
        rest = after;
    }
    line.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Text, and `code`.

```sh
not run
```

- in a list:

  ```console
  $ echo a; echo 'b
  > c'
  a
  b
  c
  $ true
  ```

```console
$ cat <<'E' > file
> one
>
> two
> E
```
";

    #[test]
    fn commands_and_their_output_are_found() {
        let examples = read(TEXT);
        let found: Vec<(usize, &str, Vec<&str>)> = examples
            .iter()
            .map(|one| (one.line, one.command.as_str(), one.output.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            found,
            [
                (10, "echo a; echo 'b\nc'", vec!["a", "b", "c"]),
                (15, "true", vec![]),
                (19, "cat <<'E' > file\none\n\ntwo\nE", vec![]),
            ]
        );
    }

    fn fits(promised: &[&str], output: &[&str]) -> bool {
        matches(&promised.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), output)
    }

    #[test]
    fn wildcards_stand_for_text_and_for_lines() {
        assert!(fits(&["a", "b"], &["a", "b"]) && fits(&[], &[]));
        assert!(!fits(&["a"], &["a", "b"]) && !fits(&["a", "b"], &["a"]) && !fits(&[], &["a"]));
        assert!(
            fits(&["…"], &[])
                && fits(&["…", "end"], &["a", "b", "end"])
                && !fits(&["…", "end"], &["end", "a"])
        );
        assert!(fits(&["took … ms, … MiB"], &["took 3 ms, 20 MiB"]));
        assert!(!fits(&["took … ms, … MiB"], &["took 3 ms, 20 KiB"]) && !fits(&["a…a"], &["a"]));
        assert!(fits(&["…x"], &["axbx"]) && fits(&["a…"], &["a  "]));
    }
}
