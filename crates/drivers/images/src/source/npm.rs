//! Packages of Node: fetched by the host's `npm`, without running any script of theirs.

use microvm_durable::error::bad_input;
use microvm_durable::files::make_directory;
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::builder::Builder;
use super::folder::{Owners, add_folder_at};

const NPM: Tool = Tool { program: "npm", package: "npm", purpose: "adding packages of Node to images" };
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
    let processor = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x64" };
    let mut command = NPM.bound_command()?;
    command.args(["install", "--global", "--prefix", prefix.as_str(), "--ignore-scripts", "--no-audit"]);
    command.args(["--no-fund", "--no-update-notifier", "--os=linux", &format!("--cpu={processor}")]);
    command.arg(if musl { "--libc=musl" } else { "--libc=glibc" }).args(packages);
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
