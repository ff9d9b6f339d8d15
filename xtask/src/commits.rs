//! Messages of commits: `type(scope): what`, as Conventional Commits has it.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{host, run};

const TYPES: [&str; 11] =
    ["build", "chore", "ci", "docs", "feat", "fix", "perf", "refactor", "revert", "style", "test"];
/// Most characters of a subject.
const LONGEST: usize = 200;

/// Checks the commits that `main` does not have, or the newest one where there are none.
pub(crate) fn check() -> Result<()> {
    let log = |range: &[&str]| {
        let mut git = run::program("git", Duration::from_secs(60));
        git.current_dir(host::repository());
        run::output(git.args(["log", "--no-merges", "--format=%h %s"]).args(range))
    };
    let mut commits = log(&["main..HEAD"]).unwrap_or_default();
    if commits.is_empty() {
        commits = log(&["--max-count=1"])?;
    }
    let wrong: Vec<String> = commits
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(commit, subject)| fault(subject).map(|fault| format!("{commit} `{subject}`: {fault}")))
        .collect();
    if wrong.is_empty() { Ok(()) } else { bail!("messages of commits:\n{}", wrong.join("\n")) }
}

/// What is wrong with the first line of a message.
fn fault(subject: &str) -> Option<String> {
    let Some((kind, what)) = subject.split_once(": ") else {
        return Some("it is not `type(scope): what`".to_owned());
    };
    let kind = kind.strip_suffix('!').unwrap_or(kind);
    let (name, scope) = match kind.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')')),
        None => (kind, Some("whole")),
    };
    let is_scope = |scope: &str| {
        let fits =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ',' | '-' | '/' | ' ');
        !scope.is_empty() && scope.chars().all(fits)
    };
    if !TYPES.contains(&name) {
        return Some(format!("`{name}` is none of {}", TYPES.join(", ")));
    }
    if !scope.is_some_and(is_scope) {
        return Some("its scope is no list of small words".to_owned());
    }
    if what.trim().is_empty() || what.ends_with('.') {
        return Some("it says nothing, or ends with a full stop".to_owned());
    }
    (subject.chars().count() > LONGEST).then(|| format!("it is longer than {LONGEST} characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_judged() {
        for good in
            ["fix: x", "feat(core,disks): x y", "refactor(api)!: a: b", "docs: numbers of 1.0 and more"]
        {
            assert_eq!(fault(good), None, "{good}");
        }
        let long = format!("fix: {}", "x".repeat(LONGEST));
        for bad in ["wip", "Fix: x", "fix x", "fix(): x", "fix(a: x", "fix: ", "feat: x.", "later: x", &long]
        {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }
}
