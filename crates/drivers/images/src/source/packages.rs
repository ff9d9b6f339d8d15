//! Debian packages on top of an image: the host's `apt-get` resolves them against the packages that the image has.
//!
//! `apt-get` gets a root of its own: the status file of the image, the package sources of the host for the image's release, and
//! a cache that stays. Packages without scripts are put in here; the others wait in the image for a VM.

use std::fs::{File, TryLockError};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::cancel::Cancel;
use microvm_durable::error::{bad_input, io_error};
use microvm_durable::files::{remove_all, write_new};
use microvm_durable::tool::Tool;
use microvm_durable::workspace::Workspace;
use microvm_ports::StorageError;

use super::apt_sources::{self, Entries};
use super::builder::Builder;
use super::deb::Package;
use super::package_cache;

const APT: Tool = Tool { program: "apt-get", package: "apt", purpose: "adding Debian packages to images" };
/// Largest status file of dpkg that is read: 50,000 packages.
pub(super) const STATUS_MAX: u64 = 64 << 20;
const STATUS: &str = "var/lib/dpkg/status";
/// Folder of the image in which packages wait for their installation: nothing else uses it, and it goes with them. What the image
/// has in the folder of its own apt is neither installed nor removed.
const WAITING: &str = "var/cache/microvm-packages";
/// Age of package lists at which they are fetched again.
const LISTS_FOR: Duration = Duration::from_secs(3_600);
/// Time between two attempts to lock the cache.
const LOCK_EVERY: Duration = Duration::from_millis(100);
/// Unpacks and configures what waits. Synced writes are of no use on a disk that goes with its VM. All that a package depends on is unpacked
/// with it or already there, so that configuring them in their order is enough; before that, order is not checked (`Pre-Depends` among
/// what waits).
const CONFIGURE: &str = "export DEBIAN_FRONTEND=noninteractive; \
    dpkg --force-unsafe-io --force-depends --unpack /var/cache/microvm-packages/*.deb && \
    dpkg --force-unsafe-io --force-confdef --force-confold --configure --pending && \
    rm -rf /var/cache/microvm-packages && \
    { command -v ldconfig > /dev/null && ldconfig; rm -rf /var/lib/dpkg/*-old /var/cache/debconf/*-old; true; }";

/// Names go onto a command line: `name`, `name:arch`, and either with `=version`. A path would be a package of the host.
pub(super) fn check_names(packages: &[String]) -> Result<(), StorageError> {
    match packages.iter().find(|package| !is_name(package)) {
        Some(package) => Err(bad_input(
            format!("the package name `{}`", package.escape_debug()),
            "write `name`, `name:architecture`, or either with `=version`",
        )),
        None => Ok(()),
    }
}

fn is_name(word: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (name, version) = word.split_once('=').map_or((word, None), |(name, version)| (name, Some(version)));
    let (name, architecture) =
        name.split_once(':').map_or((name, None), |(name, architecture)| (name, Some(architecture)));
    // For apt a `-` at the end removes a package. A `+` at the end installs one and belongs to names such as `g++`.
    word.len() <= 128
        && name.bytes().next().is_some_and(lower)
        && !name.ends_with('-')
        && name.bytes().all(|byte| lower(byte) || b"+-.".contains(&byte))
        && architecture
            .is_none_or(|text| !text.is_empty() && text.bytes().all(|byte| lower(byte) || byte == b'-'))
        && architecture.is_none_or(|text| !text.ends_with('-'))
        && version.is_none_or(|text| {
            text.starts_with(|c: char| c.is_ascii_digit())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.:~".contains(&byte))
        })
}

/// Puts packages and all that they need in; returns the commands that finish it in a VM, if any are needed.
pub(super) fn add(
    builder: &mut Builder,
    workspace: &Workspace,
    cache: &Utf8Path,
    packages: &[String],
) -> Result<Vec<String>, StorageError> {
    let status = builder.content(STATUS.as_bytes(), STATUS_MAX)?.filter(|status| !status.is_empty());
    let status = status.ok_or_else(|| {
        bad_input(
            "`packages` in the recipe",
            "the image has no Debian packages (dpkg): use `commands` with its own tools",
        )
    })?;
    let suite = suite(builder)?;
    let apt = Apt::prepare(workspace, cache, &suite, &status, &builder.cancel)?;
    let mut waiting = Vec::new();
    let mut stanzas = String::from_utf8_lossy(&status).into_owned();
    for path in apt.fetch(builder, packages)? {
        builder.cancel.check()?;
        let package = Package::open(&path)?;
        let name = package.field("Package").unwrap_or_default();
        // One that the image has in another version is for dpkg, which also removes what only the old one had.
        let known = stanzas.contains(&format!("Package: {name}\n"));
        if package.is_plain() && !known {
            builder.progress.step(format!("putting in the package {name}"));
            let stanza = package.install(builder)?;
            stanzas = format!("{}\n\n{stanza}", stanzas.trim_end());
        } else {
            waiting.push(path);
        }
    }
    builder.put(STATUS, 0o644, format!("{}\n\n", stanzas.trim_end()).as_bytes())?;
    wait(builder, &waiting)
}

/// Lays packages down that have to be installed in a VM; returns the commands for that.
fn wait(builder: &mut Builder, waiting: &[Utf8PathBuf]) -> Result<Vec<String>, StorageError> {
    for path in waiting {
        let content = std::fs::read(path).map_err(io_error("reading", path))?;
        builder.put(&format!("{WAITING}/{}", path.file_name().unwrap_or_default()), 0o644, &content)?;
    }
    Ok(if waiting.is_empty() { Vec::new() } else { vec![CONFIGURE.to_owned()] })
}

/// Release of a Debian image.
fn suite(builder: &mut Builder) -> Result<String, StorageError> {
    let mut text = String::new();
    // In this order: the second is usually a link to the first, and a link has no content here.
    for path in [&b"usr/lib/os-release"[..], b"etc/os-release"] {
        if let Some(content) = builder.content(path, 1 << 16)? {
            text = String::from_utf8_lossy(&content).into_owned();
            break;
        }
    }
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(suite))
            if suite.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') =>
        {
            Ok(suite)
        }
        _ => Err(bad_input(
            "`packages` in the recipe",
            "the image is no release of Debian (see its /etc/os-release): use `commands` with its own tools",
        )),
    }
}

/// Waits for the lock of the cache, and gives up when the build is given up. The system tells nobody that a lock is free, so it is
/// tried again and again.
fn lock_unless(lock: &File, path: &Utf8Path, cancel: &Cancel) -> Result<(), StorageError> {
    loop {
        cancel.check()?;
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_EVERY),
            Err(TryLockError::Error(error)) => return Err(io_error("locking", path)(error)),
        }
    }
}

/// A root of apt's own.
struct Apt {
    configuration: Utf8PathBuf,
    /// The folder of the cache.
    cache: Utf8PathBuf,
    empty: Utf8PathBuf,
    /// Held while apt runs: two builds at once share the cache.
    _lock: File,
}

impl Apt {
    fn prepare(
        workspace: &Workspace,
        cache: &Utf8Path,
        suite: &str,
        status: &[u8],
        cancel: &Cancel,
    ) -> Result<Self, StorageError> {
        let cache = cache.join("apt").join(suite);
        let (empty, etc) = (workspace.join("archives"), workspace.join("apt"));
        for directory in [&cache, &cache.join("lists"), &cache.join("lists/partial"), &cache.join("archives")]
        {
            std::fs::create_dir_all(directory).map_err(io_error("making", directory))?;
        }
        for directory in [&cache.join("archives/partial"), &empty.join("partial"), &etc.join("parts")] {
            std::fs::create_dir_all(directory).map_err(io_error("making", directory))?;
        }
        let lock_path = cache.join(package_cache::LOCK);
        let lock = File::create(&lock_path).map_err(io_error("opening", &lock_path))?;
        lock_unless(&lock, &lock_path, cancel)?;
        write_new(&etc.join("status"), 0o644, status)?;
        for (number, entries) in apt_sources::of_host(suite)?.into_iter().enumerate() {
            let (text, ending) = match entries {
                Entries::Lines(text) => (text, "list"),
                Entries::Stanzas(text) => (text, "sources"),
            };
            write_new(&etc.join(format!("parts/{number}.{ending}")), 0o644, text.as_bytes())?;
        }
        let configuration = etc.join("apt.conf");
        // Hooks of the host are for its own packages.
        let text = format!(
            "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear APT::Update::Pre-Invoke;\n\
             #clear DPkg::Pre-Invoke;\n#clear DPkg::Post-Invoke;\n#clear DPkg::Pre-Install-Pkgs;\n\
             Dir::State \"{etc}\";\nDir::State::lists \"{cache}/lists\";\nDir::State::status \"{etc}/status\";\n\
             Dir::State::extended_states \"{etc}/extended_states\";\n\
             Dir::Cache \"{cache}\";\nDir::Cache::archives \"{cache}/archives\";\n\
             Dir::Etc::sourcelist \"{etc}/none.list\";\nDir::Etc::sourceparts \"{etc}/parts\";\n\
             Dir::Etc::preferences \"{etc}/none\";\nDir::Etc::preferencesparts \"{etc}/none.d\";\n\
             Dir::Log \"{etc}\";\nAPT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\n\
             APT::Install-Suggests \"false\";\nAPT::Keep-Downloaded-Packages \"true\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nDebug::NoLocking \"true\";\n"
        );
        write_new(&configuration, 0o644, text.as_bytes())?;
        Ok(Self { configuration, cache, empty, _lock: lock })
    }

    fn run(&self, builder: &Builder, arguments: &[&str], line: impl FnMut(&str)) -> Result<(), StorageError> {
        let mut command = APT.bound_command()?;
        command.args(["-c", self.configuration.as_str(), "-q", "-y"]).args(arguments);
        APT.run(command, &builder.cancel, line)
    }

    /// Fetches packages with all that they need and the image does not have; returns their files.
    fn fetch(&self, builder: &Builder, packages: &[String]) -> Result<Vec<Utf8PathBuf>, StorageError> {
        let stamp = self.cache.join("updated");
        let age = stamp.metadata().and_then(|file| file.modified()).ok();
        let fresh =
            age.is_some_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < LISTS_FOR));
        if !fresh {
            self.update(builder, &stamp)?;
        }
        match self.resolve(builder, packages) {
            // Lists that are not of now may lack a package, or name a file that is gone.
            Err(_) if fresh => {
                self.update(builder, &stamp)?;
                self.resolve(builder, packages)
            }
            result => result,
        }
    }

    fn update(&self, builder: &Builder, stamp: &Utf8Path) -> Result<(), StorageError> {
        builder.progress.step("fetching lists of packages");
        self.run(builder, &["-o", "APT::Update::Error-Mode=any", "update"], |_| {})?;
        remove_all(stamp)?;
        write_new(stamp, 0o644, b"")
    }

    fn resolve(&self, builder: &Builder, packages: &[String]) -> Result<Vec<Utf8PathBuf>, StorageError> {
        let progress = builder.progress.clone();
        progress.step(format!("resolving packages: {}", packages.join(" ")));
        let words: Vec<&str> = packages.iter().map(String::as_str).collect();
        let mut download = vec!["--download-only", "--no-remove", "install"];
        download.extend(&words);
        // An empty archive makes apt name every file, those in the cache too.
        let empty = format!("Dir::Cache::archives={}", self.empty);
        let mut names = Vec::new();
        let mut unknown = None;
        let mut ask = vec!["-o", &empty, "--print-uris", "--no-remove", "install"];
        ask.extend(&words);
        let asked = self.run(builder, &ask, |line| {
            if let Some(name) = line.strip_prefix("E: Unable to locate package ") {
                unknown = Some(name.to_owned());
            } else if let Some((_, rest)) = line.strip_prefix('\'').and_then(|line| line.split_once("' ")) {
                names.extend(rest.split(' ').next().map(str::to_owned));
            }
        });
        if let Some(name) = unknown {
            return Err(bad_input(
                format!("the package `{}`", name.escape_debug()),
                "the package sources of this host have no such package for the image's release",
            ));
        }
        asked?;
        // What is in the cache is checked by apt, and fetched again if it was cut.
        self.run(builder, &download, |line| {
            if let Some(rest) = line.strip_prefix("Get:") {
                progress.step(format!("fetching {rest}"));
            }
        })?;
        Ok(names.into_iter().map(|name| self.cache.join("archives").join(name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use microvm_ports::Progress;

    use super::*;
    use crate::config::ArchiveLimits;
    use crate::erofs::TreeMemory;

    #[test]
    fn a_build_that_is_given_up_waits_for_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("lock");
        let (held, waiting) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        held.lock().unwrap();
        let cancel = Cancel::default();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| lock_unless(&waiting, &path, &cancel));
            cancel.cancel();
            waits.join().unwrap().unwrap_err();
        });
        drop(held);
        lock_unless(&waiting, &path, &Cancel::default()).unwrap();
    }

    #[test]
    fn packages_of_the_image_itself_are_not_installed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (limits, memory) = (ArchiveLimits::default(), TreeMemory::of(1 << 20));
        let mut builder =
            Builder::new(folder.join("spool"), limits, memory, Cancel::default(), Progress::ignored())
                .unwrap();
        builder.put("var/cache/apt/archives/own.deb", 0o644, b"own").unwrap();
        std::fs::write(folder.join("new_1_all.deb"), "new").unwrap();
        let commands = wait(&mut builder, &[folder.join("new_1_all.deb")]).unwrap();
        assert_eq!(builder.names(WAITING.as_bytes()), ["new_1_all.deb"]);
        assert_eq!(builder.names(b"var/cache/apt/archives"), ["own.deb"]);
        let [command] = &commands[..] else { panic!("{commands:?}") };
        assert_eq!(command.matches(&format!("/{WAITING}")).count(), 2);
        assert!(!command.contains("apt/archives"), "{command}");
        assert!(wait(&mut builder, &[]).unwrap().is_empty());
    }

    #[test]
    fn packages_are_named_with_architecture_and_version_and_nothing_else() {
        for word in [
            "git",
            "g++",
            "libstdc++6",
            "python3.11",
            "libc6:amd64",
            "gcc-12:arm64=12.2.0-14+deb12u1",
            "a=1:2~rc1",
        ] {
            assert!(check_names(&[word.to_owned()]).is_ok(), "{word}");
        }
        for word in [
            "",
            "-y",
            "--x",
            "git-",
            "./x.deb",
            "/x.deb",
            "x/y.deb",
            "git/bookworm",
            "git:",
            "git=",
            "git=-1",
            "a b",
            "git:-",
            "git:amd64-",
            "a\nb",
            "~nfoo",
            "?x",
            "^x",
            "Git",
        ] {
            assert!(check_names(&[word.to_owned()]).is_err(), "{word:?}");
        }
    }
}
