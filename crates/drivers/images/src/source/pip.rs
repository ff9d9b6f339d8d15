//! Python packages: wheels that the host's `pip` chooses for the Python of an image, put beside that Python.

use std::ffi::OsString;
use std::process::Command;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{make_directory, names_in, write_new};
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::builder::Builder;
use super::folder::{Owners, add_folder_at};
use crate::erofs::Kind;

const PIP: Tool =
    Tool { program: "pip3", package: "python3-pip", purpose: "adding Python packages to images" };
/// A module that keeps Python from starting programs.
const GUARD: &str = include_str!("pip_guard.py");
/// Its words when something wanted to.
const REFUSED: &str = "no program may be started";
/// The newest glibc whose wheels are asked for; wheels for older ones run on newer ones.
const GLIBC_MINOR_MAX: u32 = 40;
/// glibc of an image that does not say which it has: that of the oldest Debian with support.
const GLIBC_MINOR: u32 = 31;

/// The Python of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Python {
    /// Its version, as `3.11`.
    version: String,
    /// Its program.
    program: String,
    /// The folder that it imports from, and in which packages are put.
    packages: String,
    /// The folder of programs of packages.
    programs: &'static str,
}

/// Puts requirements and all that they need in.
pub(super) fn add(
    builder: &mut Builder,
    workspace: &Workspace,
    requirements: &[String],
) -> Result<(), StorageError> {
    let python = find(builder).ok_or_else(|| {
        bad_input(
            "`pip` in the recipe",
            "the image has no python3: add `packages: [python3]`, or build on an image that has it",
        )
    })?;
    let platforms = platforms(builder)?;
    let command = command(PIP, &workspace.join("pip"), &python, &platforms, requirements, &builder.cancel)?;
    let target = workspace.join("pip/target");
    let progress = builder.progress.clone();
    progress.step(format!("pip: {}", requirements.join(" ")));
    let cancel = builder.cancel.clone();
    let (mut missing, mut refused) = (None, false);
    let ran = PIP.run(command, &cancel, |line| {
        refused |= line.contains(REFUSED);
        if let Some(rest) = line.strip_prefix("ERROR: No matching distribution found for ") {
            missing = Some(rest.to_owned());
        } else if line.starts_with("Collecting ") || line.starts_with("Installing ") {
            progress.step(format!("pip: {line}"));
        }
    });
    if let Some(missing) = missing {
        return Err(bad_input(
            format!("the pip requirement `{missing}`"),
            format!(
                "there is no such package or version, or no wheel of it for Python {} on linux-{}; \
                 packages without wheels are built by `commands`",
                python.version,
                std::env::consts::ARCH
            ),
        ));
    }
    if let (Err(_), true) = (&ran, refused) {
        return Err(bad_input(
            format!("the pip requirements `{}`", requirements.join(" ")),
            "pip wanted to start a program on the host, as it does for packages that are built or come from an address; \
             such packages are installed by `commands`",
        ));
    }
    ran?;
    put(builder, &python, &target)
}

/// The command that fetches wheels into `target` of a new folder. Nothing that it fetches is run: it starts no programs, and
/// neither the working directory nor the word of a requirement leads to a file of the host.
fn command(
    pip: Tool,
    folder: &Utf8Path,
    python: &Python,
    platforms: &[String],
    requirements: &[String],
    cancel: &Cancel,
) -> Result<Command, StorageError> {
    let (target, guard, empty) = (folder.join("target"), folder.join("guard"), folder.join("empty"));
    for directory in [folder, &target, &guard, &empty] {
        make_directory(directory, 0o755)?;
    }
    // Python imports this module before anything else.
    write_new(&guard.join("sitecustomize.py"), 0o644, GUARD.as_bytes())?;
    let bound = || -> Result<Command, StorageError> {
        let mut command = pip.bound_command()?;
        let mut path = OsString::from(&guard);
        if let Some(before) = std::env::var_os("PYTHONPATH").filter(|path| !path.is_empty()) {
            path.push(":");
            path.push(before);
        }
        command.current_dir(&empty).env("PYTHONPATH", path).env("PIP_ROOT_USER_ACTION", "ignore");
        command.env("MICROVM_IMAGE_PYTHON", &python.version);
        Ok(command)
    };
    // Asked first, because the guard notes when it was imported: a Python that ignores it fetches nothing.
    let mut version = bound()?;
    version.arg("--version");
    pip.run(version, cancel, |_| {})?;
    if !guard.join("active").exists() {
        return Err(bad_input(
            "the host's pip3",
            "its Python ignores PYTHONPATH, so it cannot be kept from running scripts of packages; \
             install pip3 from the host's distribution",
        ));
    }
    let mut command = bound()?;
    command.args([
        "install",
        "--target",
        target.as_str(),
        "--only-binary=:all:",
        "--no-compile",
        "--no-input",
    ]);
    command.args(["--disable-pip-version-check", "--no-warn-script-location", "--ignore-installed"]);
    command.args(["--python-version", &python.version, "--implementation", "cp"]);
    for platform in platforms {
        command.args(["--platform", platform]);
    }
    command.arg("--").args(requirements);
    Ok(command)
}

/// Moves what pip made into the image.
fn put(builder: &mut Builder, python: &Python, target: &Utf8Path) -> Result<(), StorageError> {
    super::pip_replace::remove_old(builder, &python.packages, target)?;
    for name in names_in(target)? {
        let from = target.join(&name);
        if name == "bin" {
            for script in names_in(&from)? {
                point_to(&from.join(&script), &python.program)?;
            }
            add_folder_at(builder, &from, python.programs.as_bytes(), Owners::Root)?;
        } else if from.is_dir() {
            add_folder_at(builder, &from, format!("{}/{name}", python.packages).as_bytes(), Owners::Root)?;
        } else {
            let content = std::fs::read(&from).map_err(io_error("reading", &from))?;
            builder.put(&format!("{}/{name}", python.packages), 0o644, &content)?;
        }
    }
    Ok(())
}

/// Makes a script that pip wrote for the host's Python one of the image's.
fn point_to(script: &Utf8Path, program: &str) -> Result<(), StorageError> {
    let content = std::fs::read(script).map_err(io_error("reading", script))?;
    let Some(rest) = content.strip_prefix(b"#!") else { return Ok(()) };
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    if !rest[..end].windows(6).any(|part| part == b"python") {
        return Ok(());
    }
    let new = [format!("#!{program}").as_bytes(), &rest[end..]].concat();
    std::fs::write(script, new).map_err(io_error("writing", script))
}

/// The `python3` that is first on the usual path of the image.
fn find(builder: &Builder) -> Option<Python> {
    for bin in ["usr/local/bin", "usr/bin"] {
        let link = format!("{bin}/python3");
        let Ok(Some(node)) = builder.tree.find(link.as_bytes()) else { continue };
        let named = match &builder.tree.node(node).kind {
            Kind::Symlink(target) => version_of(&String::from_utf8_lossy(target)),
            _ => None,
        };
        let beside = || builder.names(bin.as_bytes()).iter().find_map(|name| version_of(name));
        let version = named.or_else(beside)?;
        let local = bin == "usr/local/bin";
        let packages = if local {
            format!("usr/local/lib/python{version}/site-packages")
        } else if builder.has(b"usr/lib/python3/dist-packages") {
            format!("usr/local/lib/python{version}/dist-packages")
        } else {
            format!("usr/lib/python{version}/site-packages")
        };
        let programs = if local || packages.starts_with("usr/local") { "usr/local/bin" } else { "usr/bin" };
        return Some(Python { version, program: format!("/{link}"), packages, programs });
    }
    None
}

/// `3.11` of `/usr/bin/python3.11`.
fn version_of(name: &str) -> Option<String> {
    let version = name.rsplit('/').next()?.strip_prefix("python")?;
    let minor = version.strip_prefix("3.")?;
    (!minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit())).then(|| version.to_owned())
}

/// Platforms of wheels that run in the image, the most special first.
fn platforms(builder: &mut Builder) -> Result<Vec<String>, StorageError> {
    let machine = std::env::consts::ARCH;
    if builder.names(b"lib").iter().any(|name| name.starts_with("ld-musl-")) {
        return Ok((0..=2).rev().map(|minor| format!("musllinux_1_{minor}_{machine}")).collect());
    }
    let minor = glibc_minor(builder)?.min(GLIBC_MINOR_MAX);
    let mut platforms: Vec<String> =
        (5..=minor).rev().map(|minor| format!("manylinux_2_{minor}_{machine}")).collect();
    platforms.extend(
        ["manylinux2014", "manylinux2010", "manylinux1", "linux"].map(|name| format!("{name}_{machine}")),
    );
    Ok(platforms)
}

/// Minor version of the image's glibc, by its dpkg.
fn glibc_minor(builder: &mut Builder) -> Result<u32, StorageError> {
    let status = builder.content(b"var/lib/dpkg/status", super::packages::STATUS_MAX)?.unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let stanza = status.split("\n\n").find(|stanza| stanza.starts_with("Package: libc6\n"));
    let version = stanza.and_then(|stanza| stanza.lines().find_map(|line| line.strip_prefix("Version: 2.")));
    let digits = version.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    Ok(digits.and_then(|digits| digits.parse().ok()).unwrap_or(GLIBC_MINOR))
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    #[test]
    fn versions_are_found_in_names_of_programs() {
        for (name, version) in [
            ("python3.11", Some("3.11")),
            ("/usr/bin/python3.9", Some("3.9")),
            ("python3", None),
            ("python3.11-config", None),
            ("pythonw", None),
        ] {
            assert_eq!(version_of(name).as_deref(), version, "{name}");
        }
    }

    /// A wheel of nothing but its name, its version and what it needs, written by the host's Python.
    fn wheel(folder: &Utf8Path, name: &str, needs: &str) {
        let script = "import sys, zipfile\nfolder, name, needs = sys.argv[1:]\ninfo = name + '-1.dist-info/'\n\
            file = zipfile.ZipFile(folder + '/' + name + '-1-py3-none-any.whl', 'w')\n\
            file.writestr(name + '.py', 'x = 1\\n')\n\
            file.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: ' + name + '\\nVersion: 1\\n' + needs)\n\
            file.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
            file.writestr(info + 'RECORD', '')\nfile.close()\n";
        let made =
            Command::new("python3").args(["-c", script, folder.as_str(), name, needs]).status().unwrap();
        assert!(made.success());
    }

    #[test]
    fn the_hosts_pip_asks_markers_for_the_version_of_the_image() {
        if PIP.find().is_none() {
            assert!(std::env::var_os("CI").is_none(), "pip3 is not installed");
            eprintln!("skipped: pip3 is not installed");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let wheels = folder.join("wheels");
        std::fs::create_dir(&wheels).unwrap();
        let needs =
            "Requires-Dist: old ; python_version < \"3.5\"\nRequires-Dist: new ; python_version >= \"3.5\"\n";
        for (name, needs) in [("tool", needs), ("old", ""), ("new", "")] {
            wheel(&wheels, name, needs);
        }
        // No host has the first of these any more.
        for (version, with, without) in [("3.4", "old", "new"), ("3.99", "new", "old")] {
            let python = Python {
                version: version.to_owned(),
                program: "/usr/bin/python3".to_owned(),
                packages: String::new(),
                programs: "usr/bin",
            };
            let (cancel, place) = (Cancel::default(), folder.join(version));
            let platforms = ["linux_x86_64".to_owned()];
            let mut command =
                command(PIP, &place, &python, &platforms, &["tool".to_owned()], &cancel).unwrap();
            command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", wheels.as_str());
            PIP.run(command, &cancel, |_| {}).unwrap();
            let has = |name: &str| place.join("target").join(format!("{name}.py")).exists();
            assert!(has("tool") && has(with) && !has(without), "{version}");
        }
    }

    /// Runs a fake pip as the real one would be run; returns the error, if any, and what it recorded.
    fn run(script: &str) -> (Result<(), StorageError>, String) {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let program = folder.join("pip3");
        std::fs::write(&program, script.replace("RECORD", folder.join("record").as_str())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let pip = Tool { program: program.into_string().leak(), ..PIP };
        let python = Python {
            version: "3.11".to_owned(),
            program: "/usr/bin/python3".to_owned(),
            packages: String::new(),
            programs: "usr/bin",
        };
        let cancel = Cancel::default();
        let words = ["a==1".to_owned(), "b".to_owned()];
        let command =
            command(pip, &folder.join("pip"), &python, &["linux_x86_64".to_owned()], &words, &cancel);
        let ran = command.and_then(|command| pip.run(command, &cancel, |_| {}));
        (ran, std::fs::read_to_string(folder.join("record")).unwrap_or_default())
    }

    #[test]
    fn pip_takes_wheels_only_and_starts_no_program() {
        let script = "#!/usr/bin/env python3\nimport os, subprocess, sys\n\
            starts = [lambda: subprocess.run(['true']), lambda: os.system('true'), os.fork, lambda: os.execv('/bin/true', ['x'])]\n\
            for start in starts:\n    try:\n        start()\n        print('STARTED', file=open('RECORD', 'a'))\n    \
            except PermissionError:\n        pass\n\
            print(*sys.argv[1:], *os.listdir('.'), file=open('RECORD', 'a'))\n";
        let (ran, record) = run(script);
        ran.unwrap();
        assert!(!record.contains("STARTED"), "{record}");
        let last = record.lines().last().unwrap();
        assert!(
            last.contains(" --only-binary=:all: ") && last.ends_with(" linux_x86_64 -- a==1 b"),
            "{last}"
        );
    }

    #[test]
    fn a_pip_that_cannot_be_held_is_refused_before_it_fetches() {
        let (ran, record) = run("#!/bin/sh\necho \"$@\" >> RECORD\n");
        assert!(ran.unwrap_err().to_string().contains("PYTHONPATH"));
        assert_eq!(record, "--version\n");
    }

    #[test]
    fn scripts_are_pointed_to_the_python_of_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let script = Utf8PathBuf::from_path_buf(folder.path().join("tool")).unwrap();
        for (before, after) in [
            (&b"#!/opt/of host/python3.12\nimport x\n"[..], &b"#!/usr/bin/python3\nimport x\n"[..]),
            (b"#!/bin/sh\nexec\n", b"#!/bin/sh\nexec\n"),
            (b"\x7fELF", b"\x7fELF"),
        ] {
            std::fs::write(&script, before).unwrap();
            point_to(&script, "/usr/bin/python3").unwrap();
            assert_eq!(std::fs::read(&script).unwrap(), after);
        }
    }
}
