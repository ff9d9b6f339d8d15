//! Words that must not be committed: names of registries, paths of one machine (its work tree included), and in libraries
//! commands of the command line, which whoever came by REST cannot type.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{host, run};

/// Put together from halves, so that this file does not hold them.
const FORBIDDEN: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("quay", ".io"),
    concat!("gcr", ".io"),
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("npmjs", ".org"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
];

/// How a command begins where it is quoted.
const COMMAND: &str = concat!("`micro", "vm ");

/// Whether it is code that several edges share. The command line may name commands; tests may look for them.
fn is_library(path: &str) -> bool {
    let of_cli = path.starts_with("crates/cli/") || path.starts_with("xtask/");
    path.ends_with(".rs") && !of_cli && !path.contains("/tests/")
}

/// Written by cargo, which names its registry in it.
const EXEMPT: &[&str] = &["Cargo.lock"];

/// Files that are committed or about to be, relative to the repository.
pub(crate) fn committed() -> Result<Vec<String>> {
    let mut git = run::program("git", Duration::from_secs(60));
    git.current_dir(host::repository());
    let list = run::output(git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    Ok(list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

/// Checks every text file.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let here = format!("{}/", host::repository().display());
    let forbidden: Vec<&str> = FORBIDDEN.iter().copied().chain([here.as_str()]).collect();
    for path in committed()? {
        if EXEMPT.contains(&path.as_str()) {
            continue;
        }
        // Not UTF-8 is not text; not there any more is fine.
        let Ok(text) = std::fs::read_to_string(host::repository().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{path}:{}: {word}", number + 1));
            }
            if is_library(&path) && line.contains(COMMAND) && !line.trim_start().starts_with("//") {
                wrong.push(format!("{path}:{}: a command in a library: name an `Action`", number + 1));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("forbidden words:\n  {}", wrong.join("\n  ")) }
}
