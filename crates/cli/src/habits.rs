//! Words that people know from other programs and that do not exist here: what to write instead.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};

/// Verbs, the word that is not known, and what to write instead.
const HINTS: [(&[&str], &[&str], &str); 6] = [
    (
        &["run"],
        &["-d", "--detach"],
        "`microvm create` makes a VM that stays, and `microvm exec -d VM COMMAND` runs a command in its background",
    ),
    (&["run"], &["--privileged"], "a VM has a kernel of its own: root in it may do everything there"),
    (
        &["image", "build"],
        &["-q", "--quiet"],
        "steps are told on standard error: append 2>/dev/null; the digest is on standard output",
    ),
    (&["logs"], &["--tail", "-n"], "what is kept is short: `microvm logs VM | tail -n 20`"),
    (
        &["port"],
        &["ls", "list"],
        "ports are forwarded as long as their command runs, here or behind `run -p` and `create -p`: nothing lists them",
    ),
    (
        &["image"],
        &["push"],
        "`microvm image export NAME -o FILE` writes an archive that other programs load and push",
    ),
];

/// Puts the hint into an error about a word that other programs have.
pub(crate) fn explain(error: &mut clap::Error, verbs: &[String]) {
    let unknown = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].into_iter().find_map(|kind| {
        match error.get(kind) {
            Some(ContextValue::String(word)) => Some(word.clone()),
            _ => None,
        }
    });
    if let Some(hint) = unknown.and_then(|word| hint(verbs, &word)) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(hint)]));
    }
}

fn hint(verbs: &[String], word: &str) -> Option<&'static str> {
    let named =
        |path: &[&str]| path.iter().enumerate().all(|(at, verb)| verbs.get(at).is_some_and(|v| v == verb));
    HINTS.iter().find(|(path, words, _)| named(path) && words.contains(&word)).map(|(_, _, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::Arguments;

    #[test]
    fn words_of_other_programs_are_explained() {
        for (line, part) in [
            ("microvm run -d web", "microvm create"),
            ("microvm run --detach web", "exec -d"),
            ("microvm run --privileged web", "a kernel of its own"),
            ("microvm image build -q .", "2>/dev/null"),
            ("microvm logs dev --tail 5", "tail -n 20"),
            ("microvm port ls", "nothing lists them"),
            ("microvm image push x", "image export"),
        ] {
            let mut error = Arguments::try_parse_from(line.split(' ')).unwrap_err();
            let verbs: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
            explain(&mut error, &verbs);
            let told = error.to_string();
            assert!(told.contains("tip: ") && told.contains(part), "{line}: {told}");
            assert!(!told.contains("as a value"), "{line}: {told}");
        }
        // Others keep what they had.
        let mut error = Arguments::try_parse_from(["microvm", "run", "--imag", "x"]).unwrap_err();
        explain(&mut error, &["run".to_owned()]);
        assert!(error.to_string().contains("--image"), "{error}");
    }
}
