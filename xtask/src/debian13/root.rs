//! A Debian 13 in a folder, with the packages that a host needs, and commands in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{host, packages, run};

/// The release, as Debian's archive calls it.
const SUITE: &str = "trixie";
/// The folder. Apart from the build: it is kept between runs, and VMMs of other users work in it.
const FOLDER: &str = "/var/lib/microvm-hosts/debian13";
/// A file that tells what the root was made of.
const MADE_OF: &str = ".made-of";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where it is.
pub(super) fn folder() -> PathBuf {
    PathBuf::from(FOLDER)
}

/// Makes it unless it is there and made of the same.
pub(super) fn provide() -> Result<()> {
    if !host::is_root() {
        bail!("this needs root: it makes a root directory of another release and mounts into it");
    }
    let sources = sources()?;
    let include = packages::all(packages::Purpose::Tests).collect::<Vec<_>>().join(",");
    let made_of = format!("{SUITE}\n{include}\n{sources}");
    if std::fs::read_to_string(folder().join(MADE_OF)).is_ok_and(|text| text == made_of) {
        eprintln!("  it is there");
        return Ok(());
    }
    // Made beside it and renamed, so that half a root is never taken for one. Nothing is mounted in either but in mount
    // namespaces of commands that have ended.
    let unfinished = folder().with_extension("unfinished");
    remove(&unfinished)?;
    std::fs::create_dir_all(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
    let list = unfinished.with_extension("list");
    std::fs::write(&list, &sources).with_context(|| format!("writing {}", list.display()))?;
    let mut command = run::program("unshare", Duration::from_secs(15 * 60));
    command.args(["--mount", "--propagation", "private", "--", "mmdebstrap", "--quiet", "--mode=root"]);
    command.args(["--variant=minbase", "--format=directory", "--aptopt=Acquire::Languages \"none\""]);
    command.arg(format!("--include={include}")).arg(SUITE).arg(&unfinished).arg(&list);
    run::run(&mut command)?;
    std::fs::write(unfinished.join(MADE_OF), made_of)?;
    remove(&folder())?;
    std::fs::rename(&unfinished, folder()).context("putting the root in its place")
}

fn remove(folder: &Path) -> Result<()> {
    let mut command = run::program("rm", Duration::from_secs(300));
    run::run(command.args(["--recursive", "--force", "--one-file-system"]).arg(folder))
}

/// Lines of package sources for the release: from the archives that this host's own release comes from.
fn sources() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let own = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let own = own.context("/etc/os-release does not tell the release of this host")?;
    let mut apt = run::program("apt-get", Duration::from_secs(60));
    apt.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]);
    let targets = run::output(apt.args(["Created-By: Packages", "Origin: Debian"]))?;
    let sources = in_place_of(own, &targets);
    if sources.is_empty() {
        bail!("the package sources of this host do not have Debian's archive (release {own})");
    }
    Ok(sources)
}

/// Lines of package sources for the release, by lines `ADDRESS RELEASE COMPONENT` of what a host of release `own` has.
fn in_place_of(own: &str, targets: &str) -> String {
    let line = |target: &str| {
        let mut words = target.split_whitespace();
        let (address, release) = (words.next()?, words.next()?);
        let rest = release.strip_prefix(own)?;
        let fits = matches!(rest, "" | "-updates" | "-security") && words.next() == Some("main");
        fits.then(|| format!("deb [signed-by={KEYRING}] {address} {SUITE}{rest} main\n"))
    };
    // One address may be given twice.
    targets.lines().filter_map(line).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Words before a command that is to run in the root; `shared` are folders of the host that are seen there too.
pub(super) fn runner(shared: &[&Path]) -> Vec<String> {
    let script = host::repository().join("xtask/enter.sh");
    let words = ["unshare", "--mount", "--propagation", "private", "--", "sh"].map(PathBuf::from);
    let folders = shared.iter().map(|folder| folder.to_path_buf());
    let all = words.into_iter().chain([script, folder()]).chain(folders).chain([PathBuf::from("--")]);
    all.map(|word| word.to_string_lossy().into_owned()).collect()
}

/// A command in the root.
pub(super) fn command(limit: Duration, shared: &[&Path], words: &[String]) -> Command {
    let runner = runner(shared);
    let mut command = run::program(&runner[0], limit);
    command.args(&runner[1..]).args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_comes_from_the_archives_of_the_hosts_own() {
        let targets = "http://m.test/debian/ bookworm main\nhttp://m.test/debian/ bookworm-updates main\n\
                       http://m.test/debian/ bookworm main\nhttp://m.test/debian/ bookworm contrib\n\
                       http://m.test/debian/ bookworm-backports main\nhttp://m.test/security/ bookworm-security main\n";
        let line = |rest: &str| format!("deb [signed-by={KEYRING}] http://m.test/{rest} main\n");
        let expected =
            line("debian/ trixie") + &line("debian/ trixie-updates") + &line("security/ trixie-security");
        assert_eq!(in_place_of("bookworm", targets), expected);
        assert_eq!(in_place_of("jammy", targets), "");
    }
}
