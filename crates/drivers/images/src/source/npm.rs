//! Packages of Node: fetched by the host's `npm`, without running any script of theirs.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
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
/// Place of global packages and their programs.
const PREFIX: &[u8] = b"usr/local";
/// Where `require` finds the packages: distributions' Nodes look into other folders.
const MODULES: &str = "/usr/local/lib/node_modules";
/// Variable with further folders of packages.
const NODE_PATH: &str = "NODE_PATH";

/// What npm is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Which packages it would take: the network, the registry and the names are tried, nothing is fetched.
    Plan,
    /// The packages.
    Fetch,
}

/// Asks whether the packages can be had, before minutes of other work.
pub(super) fn plan(
    builder: &mut Builder,
    workspace: &Workspace,
    packages: &[String],
) -> Result<(), StorageError> {
    ask(builder, &workspace.join("npm-plan"), Wish::Plan, packages)
}

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
    ask(builder, &prefix, Wish::Fetch, packages)?;
    for part in ["lib", "bin"] {
        let from = prefix.join(part);
        if from.is_dir() {
            let place = [PREFIX, b"/", part.as_bytes()].concat();
            add_folder_at(builder, &from, &place, Owners::Root)?;
        }
    }
    let found = builder.config.environment.entry(NODE_PATH.to_owned()).or_default();
    *found = with_modules(found);
    Ok(())
}

/// A `NODE_PATH` that has the packages, too.
fn with_modules(path: &str) -> String {
    match path {
        "" => MODULES.to_owned(),
        path if path.split(':').any(|folder| folder == MODULES) => path.to_owned(),
        path => format!("{path}:{MODULES}"),
    }
}

/// Runs npm with an empty folder.
fn ask(builder: &Builder, prefix: &Utf8Path, wish: Wish, packages: &[String]) -> Result<(), StorageError> {
    make_directory(prefix, 0o755)?;
    // A plan looks into it, and does not make it.
    make_directory(&prefix.join("lib"), 0o755)?;
    let musl = builder.names(b"lib").iter().any(|name| name.starts_with("ld-musl-"));
    let cancel = builder.cancel.clone();
    let config = global_config(NPM, prefix, &cancel)?;
    let command = command(NPM, prefix, config.as_deref(), wish, musl, packages)?;
    let doing = if wish == Wish::Plan { " (a look at what there is)" } else { "" };
    builder.progress.step(format!("npm: {}{doing}", packages.join(" ")));
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
    ran.map(drop)
}

/// npm's file of settings for all users of this host: npm looks for it below the prefix, which is another one here.
fn global_config(npm: Tool, folder: &Utf8Path, cancel: &Cancel) -> Result<Option<Utf8PathBuf>, StorageError> {
    let mut command = npm.bound_command()?;
    command.current_dir(folder).args(["config", "get", "globalconfig"]);
    let mut found = None;
    npm.run(command, cancel, |line| {
        if line.starts_with('/') {
            found = Some(Utf8PathBuf::from(line.trim_end()));
        }
    })?;
    Ok(found.filter(|path| path.is_file()))
}

/// The command that fetches packages below `prefix`. Nothing of them is run. The prohibition is in the environment too: npm starts
/// itself for packages that come from git, with options of its own. And git fails: dependencies may name addresses for it.
fn command(
    npm: Tool,
    prefix: &Utf8Path,
    config: Option<&Utf8Path>,
    wish: Wish,
    musl: bool,
    packages: &[String],
) -> Result<Command, StorageError> {
    let processor = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x64" };
    let mut command = npm.bound_command()?;
    command.current_dir(prefix).env("npm_config_ignore_scripts", "true").env("npm_config_git", NO_GIT);
    command.args(["install", "--global", "--prefix", prefix.as_str(), "--ignore-scripts", "--no-audit"]);
    command.args(["--no-fund", "--no-update-notifier", "--os=linux", &format!("--cpu={processor}")]);
    command.args(["--allow-git=none", &format!("--git={NO_GIT}")]);
    command.args(config.map(|path| format!("--globalconfig={path}")));
    command.args((wish == Wish::Plan).then_some("--dry-run"));
    command.arg(if musl { "--libc=musl" } else { "--libc=glibc" }).arg("--").args(packages);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npm_runs_no_scripts_and_no_git() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let program = folder.join("npm");
        let settings = folder.join("npmrc");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" != config ] || exec echo {settings}\n\
             echo \"$npm_config_ignore_scripts $npm_config_git $PWD $*\"\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let npm = Tool { program: program.into_string().leak(), ..NPM };
        let packages = ["a".to_owned(), "@b/c@1".to_owned()];
        let ran = |wish| {
            let config = global_config(npm, folder, &Cancel::default()).unwrap();
            let command = command(npm, folder, config.as_deref(), wish, false, &packages).unwrap();
            let mut record = String::new();
            npm.run(command, &Cancel::default(), |line| record = line.to_owned()).unwrap();
            record
        };
        let record = ran(Wish::Plan);
        assert!(record.contains(" --dry-run ") && !record.contains("globalconfig"), "{record}");
        // The settings of all users, which npm would look for below the prefix.
        std::fs::write(&settings, "").unwrap();
        let record = ran(Wish::Fetch);
        assert!(!record.contains("--dry-run"), "{record}");
        assert!(record.contains(&format!(" --globalconfig={settings} ")), "{record}");
        assert!(record.starts_with(&format!("true {NO_GIT} {folder} install ")), "{record}");
        for part in [" --ignore-scripts ", " --allow-git=none ", " --git=/bin/false "] {
            assert!(record.contains(part), "{record}");
        }
        assert!(record.ends_with(" -- a @b/c@1"), "{record}");
    }

    #[test]
    fn packages_are_among_what_node_finds() {
        assert_eq!(with_modules(""), MODULES);
        assert_eq!(with_modules("/app"), format!("/app:{MODULES}"));
        assert_eq!(with_modules(&format!("{MODULES}:/app")), format!("{MODULES}:/app"));
    }
}
