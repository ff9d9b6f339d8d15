//! Packages of Node: fetched by the host's `npm`, without running any script of theirs.

use std::process::Command;

use camino::Utf8Path;
use microvm_durable::error::bad_input;
use microvm_durable::files::make_directory;
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::builder::Builder;
use super::folder::{Owners, add_folder_at};

const NPM: Tool = Tool { program: "npm", package: "npm", purpose: "adding packages of Node to images" };
/// A git that always fails.
const NO_GIT: &str = "/bin/false";
/// Global packages and their programs are found here by every Node.
const PREFIX: &[u8] = b"usr/local";

/// Puts packages and all that they need in, as `npm install --global` does.
pub(super) fn add(
    builder: &mut Builder,
    workspace: &Workspace,
    packages: &[String],
) -> Result<(), StorageError> {
    if !["usr/local/bin/node", "usr/bin/node", "usr/bin/nodejs"]
        .iter()
        .any(|node| builder.has(node.as_bytes()))
    {
        return Err(bad_input(
            "`npm` in the recipe",
            "the image has no node: add `packages: [nodejs]`, or build on an image that has it",
        ));
    }
    let prefix = workspace.join("npm");
    make_directory(&prefix, 0o755)?;
    let musl = builder.names(b"lib").iter().any(|name| name.starts_with("ld-musl-"));
    let command = command(NPM, &prefix, musl, packages)?;
    let progress = builder.progress.clone();
    progress.step(format!("npm: {}", packages.join(" ")));
    let cancel = builder.cancel.clone();
    let mut missing = None;
    let ran = NPM.run(command, &cancel, |line| {
        if line.contains(" 404 ") && line.contains("Not Found") {
            missing = line.rsplit(['/', ' ']).next().map(|word| word.replace("%2f", "/"));
        }
    });
    if let (Err(_), Some(_)) = (&ran, &missing) {
        return Err(bad_input(
            format!("the npm packages `{}`", packages.join(" ")),
            "the registry has no such package or version",
        ));
    }
    ran?;
    for part in ["lib", "bin"] {
        let from = prefix.join(part);
        if from.is_dir() {
            let place = [PREFIX, b"/", part.as_bytes()].concat();
            add_folder_at(builder, &from, &place, Owners::Root)?;
        }
    }
    Ok(())
}

/// The command that fetches packages below `prefix`. Nothing of them is run. The prohibition is in the environment too: npm starts
/// itself for packages that come from git, with options of its own. And git fails: dependencies may name addresses for it.
fn command(npm: Tool, prefix: &Utf8Path, musl: bool, packages: &[String]) -> Result<Command, StorageError> {
    let processor = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x64" };
    let mut command = npm.bound_command()?;
    command.current_dir(prefix).env("npm_config_ignore_scripts", "true").env("npm_config_git", NO_GIT);
    command.args(["install", "--global", "--prefix", prefix.as_str(), "--ignore-scripts", "--no-audit"]);
    command.args(["--no-fund", "--no-update-notifier", "--os=linux", &format!("--cpu={processor}")]);
    command.args(["--allow-git=none", &format!("--git={NO_GIT}")]);
    command.arg(if musl { "--libc=musl" } else { "--libc=glibc" }).arg("--").args(packages);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use microvm_durable::cancel::Cancel;

    use super::*;

    #[test]
    fn npm_runs_no_scripts_and_no_git() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let program = folder.join("npm");
        let script = "#!/bin/sh\necho \"$npm_config_ignore_scripts $npm_config_git $PWD $*\"\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let npm = Tool { program: program.into_string().leak(), ..NPM };
        let command = command(npm, folder, false, &["a".to_owned(), "@b/c@1".to_owned()]).unwrap();
        let mut record = String::new();
        npm.run(command, &Cancel::default(), |line| record = line.to_owned()).unwrap();
        assert!(record.starts_with(&format!("true {NO_GIT} {folder} install ")), "{record}");
        for part in [" --ignore-scripts ", " --allow-git=none ", " --git=/bin/false "] {
            assert!(record.contains(part), "{record}");
        }
        assert!(record.ends_with(" -- a @b/c@1"), "{record}");
    }
}
